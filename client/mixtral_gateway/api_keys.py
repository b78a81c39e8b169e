"""Who may call: named keys from a file or the environment."""

import hashlib
import hmac
import re
import stat
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = "MIXTRAL_GATEWAY_API_KEYS"
SHORTEST = 16
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}$")


class ApiKeyError(Exception):
    """The keys cannot be used; the sentence never holds a key."""


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Only digests are kept, so that no dump or log of this object gives a key away."""

    digests: tuple[tuple[str, bytes], ...]

    @classmethod
    def parse(cls, lines: list[str], source: str) -> "ApiKeys":
        """Each line is `name:key`; empty ones and those that begin with # are passed over.

        Raises ApiKeyError naming the line for one of another form, a short key, or a name that is there twice."""
        digests: dict[str, bytes] = {}
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line or line.startswith("#"):
                continue
            name, colon, key = line.partition(":")
            where = f"key {number} of {source}"
            if not colon or not _NAME.match(name):
                raise ApiKeyError(f"{where} is not of the form name:key (a name has letters, digits, '_', '.', '-')")
            if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise ApiKeyError(f"{where} must have at least {SHORTEST} printable ASCII characters and no space")
            if name in digests:
                raise ApiKeyError(f"{where} has a name that is there already: {name}")
            digests[name] = _digest(key)
        if not digests:
            raise ApiKeyError(f"{source} has no key")
        return cls(tuple(digests.items()))

    @classmethod
    def from_file(cls, path: Path) -> "ApiKeys":
        """Raises ApiKeyError when it cannot be read, or others may."""
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = path.read_text("utf-8")
        except OSError as error:
            raise ApiKeyError(f"{path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ApiKeyError(f"{path} is not UTF-8 text") from None
        if mode & 0o077:
            raise ApiKeyError(f"{path} is open to other users (mode {mode:04o}); chmod 600 it")
        return cls.parse(text.splitlines(), str(path))

    def owner(self, authorization: str | None) -> str | None:
        """The name of the key in an `Authorization: Bearer KEY` header, None for any other. Every key is compared, each
        in constant time."""
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        owner = None
        for name, digest in self.digests:
            if hmac.compare_digest(given, digest):
                owner = name
        return owner if scheme.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
