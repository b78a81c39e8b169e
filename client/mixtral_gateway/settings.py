"""What an operator decides about the gateway."""

from dataclasses import dataclass

from mixtral_client import TlsOptions
from mixtral_gateway.api_keys import ApiKeys


@dataclass(frozen=True, slots=True)
class Settings:
    """triton: the server's gRPC address, over TLS when `tls` is given. models: the names that requests may give; the
    first is the one that answers bear. keys: None lets everyone in. cors_origins: web pages of these origins may call.
    idle_timeout_s: how long Triton may say nothing on a stream, and a reader may take nothing. request_timeout_s: the
    longest generation, None for no limit. max_choices: the most generations of one request. drain_s: how long running
    requests may go on after a stop signal."""

    triton: str = "localhost:8001"
    tls: TlsOptions | None = None
    models: tuple[str, ...] = ("mixtral",)
    keys: ApiKeys | None = None
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 4 * 2**20
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 60.0
    request_timeout_s: float | None = None
    max_choices: int = 128
    drain_s: float = 30.0
