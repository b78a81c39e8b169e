"""A client's stream whose every token and text is known beforehand, and what became of it."""

import functools
import threading
import time
from pathlib import Path
from typing import Any

from synthetic_tokens import FIRST_TOKEN, expected_tokens
from tokenizers import Tokenizer

from mixtral_client import Client, GenerationOptions, IdleTimeout, MixtralClientError

IDLE_S = 30.0  # the client's idle timeout: whoever reaches it was left hanging
PATIENCE_S = 120.0
TOKENIZER = Path(__file__).resolve().parents[2] / "models" / "tiny-mixtral" / "tokenizer.json"


def prompt(number: int) -> list[int]:
    return [1, FIRST_TOKEN + number, FIRST_TOKEN]


@functools.cache
def expected_text(number: int, tokens: int) -> str:
    """By the tokenizer alone, so that it is an undisturbed run's, whatever the server does."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    before = tokenizer.decode(prompt(number))
    return tokenizer.decode(prompt(number) + expected_tokens(prompt(number), tokens)).removeprefix(before)


class KnownStream:
    """One request on a connection of its own, read by a thread of its own."""

    def __init__(self, url: str, number: int, tokens: int, **options: Any) -> None:
        self.number, self.expected = number, expected_tokens(prompt(number), tokens)
        self.begun = threading.Event()
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.error: MixtralClientError | None = None
        self.ended_at = 0.0  # on the monotonic clock
        self._options = GenerationOptions(max_tokens=tokens, ignore_eos=True, return_output_ids=True, **options)
        self._client = Client(url, idle_timeout_s=IDLE_S)
        self._thread = threading.Thread(target=self._read, name=f"stream {number}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for chunk in self._client.stream(input_ids=prompt(self.number), options=self._options):
                self.token_ids += chunk.token_ids
                self.text += chunk.text
                self.finish_reason = chunk.finish_reason
                if chunk.token_ids:
                    self.begun.set()
        except MixtralClientError as error:
            self.error = error
        self.ended_at = time.monotonic()
        self.begun.set()
        self._client.close()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def cancel(self) -> None:
        self._client.close()
        self.finish()

    def finish(self) -> None:
        self._thread.join(PATIENCE_S)
        assert self.ended, "the stream hangs"

    def check_whole(self) -> None:
        """Nothing disturbed it: every token and every byte."""
        self.finish()
        assert self.error is None, self.error
        assert self.token_ids == self.expected
        assert self.text == expected_text(self.number, len(self.expected))

    def check_lost(self) -> MixtralClientError:
        """It was cut with an error, which did not take as long as the idle timeout; what came before it is right."""
        self.finish()
        assert self.error is not None, "it ended as if nothing had happened"
        assert not isinstance(self.error, IdleTimeout), self.error
        assert self.token_ids == self.expected[: len(self.token_ids)]
        return self.error
