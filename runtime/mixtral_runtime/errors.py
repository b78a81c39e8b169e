"""The errors a user can cause or meet, each with the code word that begins its text."""

from typing import ClassVar


class MixtralError(Exception):
    """An error with one sentence for the user. `str(error)` is the sentence, `error.text` has the code word before it.

    Triton carries only text on streams, so the code word in front is the only status that survives; clients and
    gateways map it back (`INVALID_ARGUMENT: max_tokens is 5000, the limit is 4096`).
    """

    code: ClassVar[str] = "INTERNAL"

    @property
    def text(self) -> str:
        return f"{self.code}: {self}"


class InvalidArgument(MixtralError):
    """The request or the input file is wrong; the sentence names the limit and the value."""

    code = "INVALID_ARGUMENT"


class CheckpointError(InvalidArgument):
    """A model directory, checkpoint or engine directory is missing, damaged or not what it must be."""


class Unavailable(MixtralError):
    """The engine cannot take the request now: its queue is full or it is shutting down."""

    code = "UNAVAILABLE"


class Internal(MixtralError):
    """The engine cannot continue; not the caller's fault."""

    code = "INTERNAL"


class StorageError(Internal):
    """The disk refuses: full, not writable, or failing."""


def unpack_error(text: str) -> MixtralError:
    """The error whose `text` this is; an unknown code word gives Internal with the whole text."""
    code, _, sentence = text.partition(": ")
    for kind in (InvalidArgument, Unavailable, Internal):
        if kind.code == code:
            return kind(sentence)
    return Internal(text)
