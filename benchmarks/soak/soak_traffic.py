"""One client process of the soak: mixed traffic for some seconds, every answer checked.

Prints one JSON line: what was asked, how it ended, and what was wrong.
"""

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from soak_questions import MAX_TOKENS, Decoder, Question, Questions, faults

from mixtral_client import AsyncClient
from mixtral_client.errors import InvalidArgument, MixtralClientError, Unavailable
from mixtral_client.generation import GenerationOptions

KINDS = {"stream": 10, "plain": 4, "stop": 4, "cancel": 6, "deadline": 2, "bad": 3}
EXAMPLES, EXAMPLE_CHARACTERS = 5, 4000  # of what was wrong
BURST_TOKENS = 4


@dataclass
class Tally:
    """asked, ended: requests by kind and by end. tokens: delivered and checked. wrong: faults by name."""

    asked: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def blame(self, names: list[str], about: str) -> None:
        self.wrong.update(names)
        if names and len(self.examples) < EXAMPLES:
            self.examples.append(f"{', '.join(names)}: {about}"[:EXAMPLE_CHARACTERS])

    def to_json(self) -> dict[str, Any]:
        # Not `asdict`: it makes a Counter of the pairs of a Counter.
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def merge(self, other: dict[str, Any]) -> None:
        """other: what `to_json` gave."""
        self.asked.update(other["asked"])
        self.ended.update(other["ended"])
        self.tokens += other["tokens"]
        self.wrong.update(other["wrong"])
        self.examples = (self.examples + other["examples"])[:EXAMPLES]


class Traffic:
    """Asks with `streams` requests at a time until the end, and once a burst of more than the server may take."""

    def __init__(
        self, client: AsyncClient, questions: Questions, decoder: Decoder, seed: int, kinds: Mapping[str, int]
    ) -> None:
        """kinds: weights of `KINDS`."""
        self._client, self._questions, self._decoder = client, questions, decoder
        self._kinds = kinds
        self._random = random.Random(seed)
        self.tally = Tally()

    async def run(self, seconds: float, streams: int, burst: int) -> None:
        end = time.monotonic() + seconds
        tasks = [self._keep_asking(end) for _ in range(streams)]
        await asyncio.gather(*tasks, self._burst(burst, delay_s=seconds * self._random.random()))

    async def _keep_asking(self, end: float) -> None:
        while time.monotonic() < end:
            kind = self._random.choices(list(self._kinds), list(self._kinds.values()))[0]
            await self._ask(kind)

    async def _burst(self, count: int, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await asyncio.gather(*(self._ask("burst") for _ in range(count)))

    async def _ask(self, kind: str) -> None:
        self.tally.asked[kind] += 1
        question = self._questions.draw()
        try:
            if kind == "bad":
                await self._ask_badly(question)
            elif kind == "cancel":
                await self._ask_and_cancel(question)
            else:
                await self._ask_whole(kind, question)
        except Unavailable:
            self.tally.ended["unavailable"] += 1
        except MixtralClientError as error:
            self.tally.blame(["error"], f"{kind}: {type(error).__name__}: {error}")

    async def _ask_whole(self, kind: str, question: Question) -> None:
        count = BURST_TOKENS if kind == "burst" else self._random.randint(1, MAX_TOKENS)
        options: dict[str, Any] = {"stream": kind != "plain"}
        stop = ""
        if kind == "stop":
            stop = self.stop_string(question, count)
            options["stop_words"] = (stop,) if stop else ()
        if kind == "deadline":
            options["timeout_ms"] = self._random.randint(1, 500)
        result = await self._client.generate(input_ids=question.prompt, options=_options(count, **options))
        self.tally.ended[str(result.finish_reason)] += 1
        self.tally.tokens += len(result.token_ids)
        whole = result.finish_reason != "timeout"
        wrong = faults(
            self._decoder,
            question,
            result.token_ids,
            result.text,
            tokens=count if whole else None,
            stop=stop,
            flushed=not whole,
        )
        allowed = {"stop": ("stop",) if stop else ("length",), "deadline": ("length", "timeout")}.get(kind, ("length",))
        if result.finish_reason not in allowed:
            wrong.append("finish_reason")
        self.tally.blame(
            wrong, f"{kind}, {count} tokens, stop {stop!r}, {result.finish_reason}: {result.text!r}, {result.token_ids}"
        )

    def stop_string(self, question: Question, count: int) -> str:
        """A few characters of the answer itself, so that it is found, often across tokens; none if none is known."""
        text, _ = self._decoder.known(question.prompt, question.tokens[:count])
        at = self._random.randrange(len(text)) if text else 0
        return text[at : at + self._random.randint(1, 12)]

    async def _ask_and_cancel(self, question: Question) -> None:
        """Leaves at any moment: before the first response too."""
        patience_s = self._random.choice([0.0, 0.001, 0.01, 0.05, 0.2, 1.0]) * self._random.random()
        ids: list[int] = []
        text: list[str] = []
        chunks = self._client.stream(input_ids=question.prompt, options=_options(MAX_TOKENS))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s), contextlib.aclosing(chunks):
                async for chunk in chunks:
                    ids += chunk.token_ids
                    text.append(chunk.text)
        self.tally.ended["cancelled"] += 1
        self.tally.tokens += len(ids)
        wrong = faults(self._decoder, question, ids, "".join(text), tokens=None)
        self.tally.blame(wrong, f"cancel: {''.join(text)!r}, {ids}")

    async def _ask_badly(self, question: Question) -> None:
        bad: dict[str, Any] = self._random.choice(
            [{"max_tokens": 0}, {"temperature": -1.0}, {"top_k": 5000}, {"timeout_ms": 0}]
        )
        options = GenerationOptions(**({"max_tokens": 5} | bad))
        try:
            await self._client.generate(input_ids=question.prompt, options=options)
        except InvalidArgument:
            self.tally.ended["refused"] += 1
        else:
            self.tally.blame(["accepted"], f"{bad}")


def _options(count: int, **more: Any) -> GenerationOptions:
    return GenerationOptions(max_tokens=count, ignore_eos=True, return_output_ids=True, **more)


async def main(job: dict[str, Any]) -> None:
    pool = Path(job["pool"]) if job["pool"] else None
    questions, decoder = Questions(job["seed"], pool), Decoder(Path(job["tokenizer"]))
    async with AsyncClient(job["url"], idle_timeout_s=job["idle_timeout_s"]) as client:
        kinds = {kind: weight for kind, weight in KINDS.items() if job["bad"] or kind != "bad"}
        traffic = Traffic(client, questions, decoder, job["seed"], kinds)
        await traffic.run(job["seconds"], job["streams"], job["burst"])
    print(json.dumps(traffic.tally.to_json()), flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
