"""The files that TLS and the admin token need: missing, wrong or readable by others is said in one sentence."""

import os
import re
import ssl
import stat
from pathlib import Path

from mixtral_runtime.errors import InvalidArgument

TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")  # what may stand in a header, and no shorter than can be guessed


def check_key_pair(certificate: Path, key: Path) -> None:
    """Triton itself would end with "handshaker factory creation failed". Raises InvalidArgument."""
    _check_readable("tls.certificate", certificate)
    check_private("tls.key", key)
    encrypted = []

    def password() -> str:  # without it OpenSSL would ask at the terminal
        encrypted.append(True)
        return ""

    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        if encrypted:
            raise InvalidArgument(f"tls.key {key} is encrypted; Triton takes only plain keys") from error
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidArgument(f"tls.key {key} does not belong to tls.certificate {certificate}") from error
        raise InvalidArgument(f"{certificate} and {key} are not a certificate and its key in PEM form") from error
    if reason := _refusal(certificate, server):
        raise InvalidArgument(f"no client would accept tls.certificate {certificate}: {reason}")


def _refusal(certificate: Path, server: ssl.SSLContext) -> str | None:
    """Why a client that trusts just this certificate refuses it, such as its dates: a handshake in memory."""
    client = ssl.create_default_context(cafile=certificate)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it is trusted itself, whoever signed it
    upward, downward = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking, answering = client.wrap_bio(downward, upward), server.wrap_bio(upward, downward, server_side=True)
    for side in (asking, answering, asking):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return None


def check_authorities(path: Path) -> None:
    _check_readable("tls.client_ca", path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except ssl.SSLError as error:
        raise InvalidArgument(f"tls.client_ca {path} holds no certificate in PEM form") from error


def read_token(path: Path) -> str:
    """The admin token: the file's only line. Raises InvalidArgument, which never tells the token."""
    check_private("admin.token_file", path)
    token = path.read_text(errors="replace").rstrip()
    if not TOKEN.fullmatch(token):
        raise InvalidArgument(
            f"admin.token_file {path} must hold one line of 16 to 512 letters, digits or . _ ~ + / = - "
            f"(make one with: openssl rand -hex 32)"
        )
    return token


def check_private(what: str, path: Path) -> None:
    """As ssh and PostgreSQL ask: for the owner alone; if root owns it, its group may read too, as secrets are mounted.

    Raises InvalidArgument naming the file, its mode and the fix.
    """
    _check_readable(what, path)
    status = path.stat()
    shared = 0o027 if status.st_uid == 0 else 0o077
    if status.st_mode & shared:
        mode = stat.S_IMODE(status.st_mode)
        raise InvalidArgument(f"{what} {path} is open to other users (mode {mode:04o}); run chmod 600 {path}")


def _check_readable(what: str, path: Path) -> None:
    if not path.is_file():
        raise InvalidArgument(f"{what} {path} is not a file")
    if not os.access(path, os.R_OK):
        raise InvalidArgument(f"{what} {path} cannot be read")
