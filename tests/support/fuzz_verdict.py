"""What a reply to a fuzzed request may look like: a result, or one clean sentence with the right status."""

import re
from pathlib import Path

from fuzz_calls import Reply
from fuzz_requests import Case

OURS = re.compile(r"(INVALID_ARGUMENT|UNAVAILABLE|INTERNAL): .")
# How the server names itself in front of our sentence.
PREFIX = re.compile(r"^in ensemble '[^']*', ")
LEAKS = ("Traceback", 'File "', ".py", "site-packages", "/dev/shm", str(Path(__file__).resolve().parents[2]))
# Behind /infer; /generate answers 400 to every error of a model.
STATUS = {"INVALID_ARGUMENT": 400, "UNAVAILABLE": 503, "INTERNAL": 500}


def fault(case: Case, reply: Reply | None) -> str | None:
    """What is wrong with the reply, or None."""
    if reply is None or reply.given_up:
        return None
    if reply.hung:
        return "no answer in time"
    if not reply.results and not reply.errors and case.way not in ("stream", "generate_stream"):
        return "neither a result nor an error"
    for error in reply.errors:
        if (wrong := _fault_of_text(error)) is not None:
            return f"{wrong}: {error[:500]!r}"
        match = OURS.match(PREFIX.sub("", error))
        expected = 400 if case.way == "generate" or match is None else STATUS[match[1]]
        if match and case.way != "generate_stream" and isinstance(reply.status, int) and reply.status != expected:
            return f"HTTP {reply.status} for {error[:300]!r}"
    return None


def _fault_of_text(error: str) -> str | None:
    if leak := next((leak for leak in LEAKS if leak in error), None):
        return f"an error shows {leak!r}"
    sentence = PREFIX.sub("", error)
    if OURS.match(sentence) and "\n" in sentence:
        return "an error of several lines"
    if sentence.startswith("INTERNAL: unexpected"):
        return "an exception that nobody foresaw"
    if not sentence.strip():
        return "an empty error"
    return None
