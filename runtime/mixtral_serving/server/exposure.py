"""What the server opens to whom: TLS for gRPC, the admin endpoints, and where plain HTTP and metrics listen."""

import dataclasses
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.server.command import Address
from mixtral_serving.server.secret_files import check_authorities, check_key_pair, read_token

LOOPBACK = "127.0.0.1"

# Whoever may use these changes what is served, writes trace files, or maps any shared memory of the machine into the
# server. Statistics stay open: /metrics and engine_info say the same, and perf_analyzer wants them.
ADMIN_ENDPOINTS = ("model-repository", "trace", "logging", "shared-memory")

# A header that no request can carry: neither HTTP/1.1 nor HTTP/2 lets a line break into a header's name or value. So it
# may stand in `ps`; with an admin token it is replaced inside the server (see `admin_token`).
CLOSED = "closed to everyone\n=\n"
TOKEN_HEADER = "admin-token"
GRPC_HEADER_PREFIX = "triton-grpc-protocol-"  # Triton's own

# Triton 26.04, where the metadata of a gRPC stream no longer leads to a use after free. A body of very many chunks
# overflows the stack of HTTP's thread before 25.07.
FIRST_UNCRASHABLE = (2, 68)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """The section `[tls]`: PEM files, relative to the settings file. key: not encrypted, readable by its owner alone.
    client_ca: only clients whose certificate it signed may connect (mutual TLS)."""

    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidArgument("certificate and key are needed together, only one of them is set")
        if self.client_ca is not None and self.certificate is None:
            raise InvalidArgument("client_ca needs certificate and key")


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """The section `[admin]`. token_file: a file with the token that opens the admin endpoints, relative to the settings
    file; without it they are closed to everyone."""

    token_file: str | None = None


@dataclass(frozen=True, slots=True)
class PlaintextSettings:
    """The section `[plaintext]`: addresses that unencrypted, unauthenticated HTTP and metrics bind. By default that of
    `--host`; once gRPC has TLS, loopback."""

    http_host: str | None = None
    metrics_host: str | None = None


@dataclass(frozen=True, slots=True)
class Exposure:
    """The sections together, with their files found and tried."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    token_file: Path | None = None
    plaintext: PlaintextSettings = PlaintextSettings()

    @classmethod
    def make(cls, tls: TlsSettings, admin: AdminSettings, plaintext: PlaintextSettings, folder: Path) -> "Exposure":
        """Paths are relative to `folder`. Raises InvalidArgument for a file that is missing, wrong or too open."""

        def path(name: str | None) -> Path | None:
            return None if name is None else (folder / name).resolve()

        made = cls(path(tls.certificate), path(tls.key), path(tls.client_ca), path(admin.token_file), plaintext)
        if made.certificate is not None and made.key is not None:
            check_key_pair(made.certificate, made.key)
        if made.client_ca is not None:
            check_authorities(made.client_ca)
        if made.token_file is not None:
            read_token(made.token_file)
        return made

    @property
    def grpc_protection(self) -> str:
        if self.certificate is None:
            return "plain text"
        return "TLS" if self.client_ca is None else "mutual TLS"

    def bind(self, address: Address) -> Address:
        """The address with the hosts of HTTP and metrics settled."""
        plain = address.host if self.certificate is None else LOOPBACK
        return dataclasses.replace(
            address,
            http_host=self.plaintext.http_host or plain,
            metrics_host=self.plaintext.metrics_host or plain,
        )

    def arguments(self) -> list[str]:
        """For Triton's command line; no secret is in them."""
        endpoints = ",".join(ADMIN_ENDPOINTS)
        arguments = [
            f"--grpc-restricted-protocol={endpoints}:{CLOSED}",
            f"--http-restricted-api={endpoints}:{CLOSED}",
        ]
        if self.certificate is not None:
            arguments += [f"--grpc-server-cert={self.certificate}", f"--grpc-server-key={self.key}"]
            if self.client_ca is None:
                arguments.append("--grpc-use-ssl=true")
            else:
                arguments += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca}"]
        return arguments

    def describe(self, address: Address) -> str:
        """Where a bound server listens and how that is protected, for the operator."""
        admin = "closed" if self.token_file is None else "with the token"
        return (
            f"gRPC {address.host}:{address.grpc_port} ({self.grpc_protection}), "
            f"HTTP {address.http_host}:{address.http_port}, "
            f"metrics {address.metrics_host}:{address.metrics_port}, admin endpoints {admin}"
        )

    def crash_warning(self, address: Address, version: str) -> str | None:
        """One line if strangers may reach a port through which they can crash this Triton. address: bound."""
        exposed = []
        if self.client_ca is None and not is_loopback(address.host):
            exposed.append(f"gRPC {address.host}:{address.grpc_port}")
        if not is_loopback(address.http_host or address.host):
            exposed.append(f"HTTP {address.http_host or address.host}:{address.http_port}")
        if not exposed or _number(version) >= FIRST_UNCRASHABLE:
            return None
        fixed = ".".join(map(str, FIRST_UNCRASHABLE))
        return (
            f"whoever reaches {' or '.join(exposed)} can crash Triton {version} (fixed in {fixed}, release 26.04): "
            f"bind {LOOPBACK}, or let only known clients in with tls.client_ca, see docs/security.md"
        )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
