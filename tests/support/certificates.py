"""Certificates for the tests of TLS, as files, made when they are needed."""

import datetime
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

from mixtral_client import TlsOptions


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates; `ca` is the file by which it is trusted."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = folder / f"{name}.pem"
        self._folder, self._name = folder, name
        self._authority = trustme.CA(organization_name=name)
        self._authority.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *hosts: str, expired: bool = False) -> Pair:
        """hosts: names and addresses that the certificate is for; a client's needs none but takes its own name."""
        now = datetime.datetime.now(datetime.UTC)
        issued = self._authority.issue_cert(
            *(hosts or (f"{name}.example",)),
            not_before=now - datetime.timedelta(days=2),
            not_after=now + datetime.timedelta(days=-1 if expired else 1),
        )
        pair = Pair(self._folder / f"{self._name}-{name}.pem", self._folder / f"{self._name}-{name}.key")
        issued.cert_chain_pems[0].write_to_path(str(pair.certificate))
        issued.private_key_pem.write_to_path(str(pair.key))
        pair.key.chmod(0o600)
        return pair

    def options(self, pair: Pair | None = None) -> TlsOptions:
        """A client's, that trusts this authority and shows `pair`."""
        return TlsOptions(self.ca) if pair is None else TlsOptions(self.ca, pair.certificate, pair.key)


def encrypt(key: Path, path: Path) -> Path:
    """A copy of the key that takes a password, written to `path`."""
    plain = serialization.load_pem_private_key(key.read_bytes(), None)
    password = serialization.BestAvailableEncryption(b"password")
    path.write_bytes(plain.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, password))
    path.chmod(0o600)
    return path
