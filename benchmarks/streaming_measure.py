"""One measurement of one path: what arrived, how much later than it was made, and at what cost."""

import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
from streaming_load import Arrivals, Prompt, run_streams
from streaming_paths import Running, StreamingPath
from synthetic_emissions import Emission, read_emissions
from synthetic_tokens import END_TOKEN, FIRST_TOKEN

from mixtral_runtime.tokenizer import encode_prompt, load_tokenizer

Floats = npt.NDArray[np.float64]
RUSH_S = 1.0
LAG_GROWTH_MS = 20.0  # more than this from the first third of a run to the last, and the lag is not flat


@dataclass(frozen=True, slots=True)
class Point:
    """streams: at once. offered_tokens_per_s: what the engine makes, None when it does not wait. delivered: tokens/s
    from the first request to the last arrival. added_*: milliseconds from the step that made a token to its arrival,
    of a paced load without its first second.
    lag_growth_ms: median of the last third less that of the first. cpu_us: processor time per response by process."""

    path: str
    streams: int
    tokens_per_stream: int
    offered_tokens_per_s: float | None
    delivered_tokens_per_s: float
    responses_per_s: float
    tokens_per_response: float
    added_p50_ms: float
    added_p99_ms: float
    lag_growth_ms: float
    cpu_us: dict[str, float]

    @property
    def flat(self) -> bool:
        return self.lag_growth_ms <= LAG_GROWTH_MS

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"flat": self.flat}


class Prompts:
    """Prompts of an exact length in tokens, no two alike in a run."""

    def __init__(self, tokenizer_dir: Path, seed: int) -> None:
        self._tokenizer = load_tokenizer(tokenizer_dir)
        self._random = random.Random(seed)

    def make(self, tokens: int) -> Prompt:
        """tokens: BOS included."""
        while True:
            ids = [self._random.randrange(FIRST_TOKEN, END_TOKEN) for _ in range(tokens - 1)]
            text = self._tokenizer.backend_tokenizer.decode(ids)
            encoded = encode_prompt(self._tokenizer, text)
            # Random pieces seldom come back as they went; cut or filled up they have the length that counts.
            while len(encoded) < tokens:
                text += " a"
                encoded = encode_prompt(self._tokenizer, text)
            while len(encoded) > tokens:
                text = text[:-1]
                encoded = encode_prompt(self._tokenizer, text)
            if len(encoded) == tokens:
                return Prompt(text, encoded)


def measure(path: StreamingPath, running: Running, prompts: Sequence[Prompt], max_tokens: int, step_s: float) -> Point:
    """All prompts at once, `max_tokens` tokens each. Raises RuntimeError when a stream fails or loses tokens."""
    client = psutil.Process(os.getpid())
    before, client_before = running.cpu_s(), sum(client.cpu_times()[:2])
    arrivals = run_streams(running.port, [path.request(prompt, max_tokens) for prompt in prompts])
    after, client_after = running.cpu_s(), sum(client.cpu_times()[:2])
    added = np.stack([_added_ms(path, running, p, a, max_tokens) for p, a in zip(prompts, arrivals, strict=True)])
    responses = sum(len(stream.times_ns) for stream in arrivals)
    tokens = len(prompts) * max_tokens
    span_s = (max(a.times_ns[-1] for a in arrivals) - min(a.sent_ns for a in arrivals)) / 1e9
    if step_s:
        # A paced load is meant as one that goes on: the rush in which all streams begin at once is left out.
        added = added[:, min(int(RUSH_S / step_s), max_tokens // 2) :]
    third = max(added.shape[1] // 3, 1)
    cpu_s = {name: after[name] - before[name] for name in before} | {"client": client_after - client_before}
    return Point(
        path=path.name,
        streams=len(prompts),
        tokens_per_stream=max_tokens,
        offered_tokens_per_s=len(prompts) / step_s if step_s else None,
        delivered_tokens_per_s=tokens / span_s,
        responses_per_s=responses / span_s,
        tokens_per_response=tokens / responses,
        added_p50_ms=float(np.percentile(added, 50)),
        added_p99_ms=float(np.percentile(added, 99)),
        lag_growth_ms=float(np.median(added[:, -third:]) - np.median(added[:, :third])),
        cpu_us={name: 1e6 * seconds / responses for name, seconds in cpu_s.items() if seconds > 0},
    )


def first_token_ms(path: StreamingPath, running: Running, prompt: Prompt) -> float:
    """Milliseconds from asking to the first response, less what the engine took from getting the request to making its
    token. Asked as most clients ask: for the text, without counts."""
    (arrival,) = run_streams(running.port, [path.request(prompt, 2, counted=False)])
    emission = _emission(path, running, prompt)
    inside_ns = int(emission.times_ns[0]) - emission.submitted_ns
    return (arrival.times_ns[0] - arrival.sent_ns - inside_ns) / 1e6


def _added_ms(path: StreamingPath, running: Running, prompt: Prompt, arrivals: Arrivals, max_tokens: int) -> Floats:
    """[tokens] float64"""
    arrived, made = arrivals.per_token_ns(), _emission(path, running, prompt).times_ns
    if len(arrived) != max_tokens or len(made) != max_tokens:
        raise RuntimeError(f"{path.name}: {len(arrived)} tokens arrived, {len(made)} were made, {max_tokens} asked for")
    return np.asarray((arrived - made) / 1e6, np.float64)


def _emission(path: StreamingPath, running: Running, prompt: Prompt) -> Emission:
    found = read_emissions(running.emissions, prompt.ids)
    if not found:
        raise RuntimeError(f"{path.name}: the engine never saw the prompt")
    return found[-1]
