"""Client of a Mixtral served by Triton: streams text over gRPC, blocking (`Client`) or with asyncio (`AsyncClient`).

with Client("localhost:8001") as client:
    for chunk in client.stream("Once upon a time", options=GenerationOptions(max_tokens=64)):
        print(chunk.text, end="", flush=True)
"""

import mixtral_client.grpc_log  # noqa: F401  (before anything that imports gRPC)
from mixtral_client.aio import AsyncClient
from mixtral_client.errors import (
    Cancelled,
    IdleTimeout,
    Internal,
    InvalidArgument,
    MixtralClientError,
    ProtocolError,
    ServerError,
    ServerUnreachable,
    Unavailable,
)
from mixtral_client.generation import Chunk, GenerationOptions, Message, Result, TokenLogProb, Usage
from mixtral_client.status import ServerStatus
from mixtral_client.sync import Client
from mixtral_client.tls import TlsOptions

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Chunk",
    "Client",
    "GenerationOptions",
    "IdleTimeout",
    "Internal",
    "InvalidArgument",
    "Message",
    "MixtralClientError",
    "ProtocolError",
    "Result",
    "ServerError",
    "ServerStatus",
    "ServerUnreachable",
    "TlsOptions",
    "TokenLogProb",
    "Unavailable",
    "Usage",
]
