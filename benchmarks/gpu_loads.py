"""Requests through the engine seam, `submit` and `poll`, as a server sends them: all at once, each prompt another."""

import random
import statistics
import time
from dataclasses import dataclass

from gpu_record import OutOfTime

from mixtral_runtime.engine import Engine, Request

PATIENCE_S = 60.0  # no step of a sound engine is longer, compiling included


class LoadFailed(Exception):
    """A request did not get its tokens."""


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """Of `batch` requests submitted at once. ttft_s, tpot_s: of the requests. tokens_per_s: output tokens of all, over
    the time from the first submission to the last token. step_s: of the steps in which every sequence is decoded, and
    step_context: tokens of each sequence then, on average; both None where there were no such steps."""

    ttft_s_median: float
    ttft_s_max: float
    tpot_s_median: float
    seconds: float
    tokens_per_s: float
    step_s: float | None
    step_context: float | None


def random_prompts(count: int, length: int, vocabulary: int, rng: random.Random) -> list[list[int]]:
    """None was seen before, so none is found in the cache."""
    return [[rng.randrange(3, vocabulary) for _ in range(length)] for _ in range(count)]


def run_load(engine: Engine, prompts: list[list[int]], output_tokens: int, deadline: float) -> LoadFigures:
    """deadline: on the monotonic clock, after which the requests are cancelled. Raises OutOfTime then, LoadFailed where
    the engine fails a request or falls silent."""
    begun = time.perf_counter()
    live = {engine.submit(Request(prompt, output_tokens)) for prompt in prompts}
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    arrivals: list[tuple[float, int]] = []  # time, output tokens of all so far
    total = 0
    try:
        while live:
            outputs = engine.poll(PATIENCE_S)
            now = time.perf_counter()
            if not outputs:
                raise LoadFailed(f"no output for {PATIENCE_S:.0f} s")
            live -= {output.id for output in outputs if output.final}
            for output in outputs:
                if output.error is not None:
                    raise LoadFailed(f"the engine failed a request: {output.error}")
                if output.token_ids:
                    first.setdefault(output.id, now)
                    last[output.id] = now
                    total += len(output.token_ids)
            arrivals.append((now, total))
            if time.monotonic() > deadline:
                raise OutOfTime(f"the time was up after {total} of {len(prompts) * output_tokens} tokens")
    finally:
        _cancel(engine, live)
    if total != len(prompts) * output_tokens:
        raise LoadFailed(f"{total} tokens came, {len(prompts) * output_tokens} were asked for")
    seconds = max(last.values()) - begun
    step_s, context = _decode_steps(arrivals, first, last, prompts, output_tokens)
    return LoadFigures(
        ttft_s_median=statistics.median(first.values()) - begun,
        ttft_s_max=max(first.values()) - begun,
        tpot_s_median=statistics.median((last[i] - first[i]) / max(1, output_tokens - 1) for i in first),
        seconds=seconds,
        tokens_per_s=total / seconds,
        step_s=step_s,
        step_context=context,
    )


def _decode_steps(
    arrivals: list[tuple[float, int]],
    first: dict[int, float],
    last: dict[int, float],
    prompts: list[list[int]],
    output_tokens: int,
) -> tuple[float | None, float | None]:
    """Between the last sequence's first token and the first sequence's last one every step decodes all of them."""
    from_, to = max(first.values()), min(last.values())
    window = [(time_, count) for time_, count in arrivals if from_ <= time_ <= to]
    if len(window) < 2 or window[-1][1] == window[0][1]:
        return None, None
    steps = (window[-1][1] - window[0][1]) / len(prompts)
    done = (window[0][1] + window[-1][1]) / 2 / len(prompts)  # output tokens of a sequence in the middle of the window
    assert done <= output_tokens
    return (window[-1][0] - window[0][0]) / steps, len(prompts[0]) + done


def _cancel(engine: Engine, live: set[int]) -> None:
    for request_id in live:
        engine.cancel(request_id)
    until = time.monotonic() + PATIENCE_S
    while live and time.monotonic() < until:
        live -= {output.id for output in engine.poll(1.0) if output.final}
