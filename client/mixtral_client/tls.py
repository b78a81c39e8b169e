"""Encrypted connections: which server is trusted, and who the client is."""

import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

import grpc

from mixtral_client.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """What a TLS connection needs; all files are PEM.

    ca: the authorities whose signature on the server's certificate is trusted; None trusts the public ones.
    certificate, key: what the client shows to a server that asks for it (mutual TLS); both or neither.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises InvalidArgument naming a file that is missing, of another kind, or a key that others may read."""
        if (self.certificate is None) != (self.key is None):
            raise InvalidArgument("a client certificate and its key are needed together, only one of them was given")
        ca = None if self.ca is None else _read("CA file", self.ca)
        # gRPC says of a wrong file only "Failed to create security handshaker", so they are tried here.
        if self.ca is not None:
            _try_authorities(self.ca)
        if self.certificate is None or self.key is None:
            return grpc.ssl_channel_credentials(ca)
        certificate, key = _read("client certificate", self.certificate), _read("client key", self.key)
        _refuse_shared_key(self.key)
        _try_pair(self.certificate, self.key)
        return grpc.ssl_channel_credentials(ca, key, certificate)


def explain_failure(details: str, url: str, tls: TlsOptions | None) -> str | None:
    """One sentence when a connection failed over TLS, or over its absence; None when it failed for another reason.

    details: gRPC's text. A server that wants something else only closes the connection, so for that the sentence is a
    question.
    """
    if "CERTIFICATE_VERIFY_FAILED" in details:
        reason = details.rsplit("CERTIFICATE_VERIFY_FAILED: ", 1)[-1].split(":")[0]
        if "expired" in reason:
            return f"the certificate of {url} has expired"
        return (
            f"the certificate of {url} is not signed by a trusted authority ({reason}); is the CA file the right one?"
        )
    if "Hostname Verification Check failed" in details:
        return f"the certificate of {url} is for another host; connect by a name or address that it lists"
    if "WRONG_VERSION_NUMBER" in details:
        return f"{url} does not speak TLS; connect without it"
    if "handshake failed" in details:
        return f"the TLS handshake with {url} failed: {details.rsplit('OPENSSL_internal:', 1)[-1]}"
    if "failed to connect" in details and ("Socket closed" in details or "Connection reset" in details):
        if tls is None:
            return f"{url} closed the connection at once; does it expect TLS?"
        if tls.certificate is None:
            return f"{url} closed the connection at once; does it ask for a client certificate?"
        return f"{url} closed the connection at once; does it trust the authority of the client certificate?"
    return None


def _read(what: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"the {what} {path} cannot be read: {error.strerror}") from None


def _try_authorities(path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise InvalidArgument(f"the CA file {path} holds no certificate in PEM form") from None


def _refuse_shared_key(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise InvalidArgument(f"the client key {path} is open to other users (mode {mode:04o}); chmod 600 it")


def _try_pair(certificate: Path, key: Path) -> None:
    encrypted = []

    def password() -> str:  # without it OpenSSL would ask at the terminal
        encrypted.append(True)
        return ""

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        if encrypted:
            raise InvalidArgument(f"the client key {key} is encrypted; gRPC takes only plain keys") from None
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidArgument(f"the client key {key} does not belong to the certificate {certificate}") from None
        raise InvalidArgument(f"{certificate} and {key} are not a certificate and its key in PEM form") from None
