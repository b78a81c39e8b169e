"""A plain sampler, one request at a time with the whole vocabulary sorted: what the engine's must agree with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixtral_runtime.engine import Request, SamplingParams

MASK64 = 2**64 - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
BANNED = torch.finfo(torch.float32).min


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row is sampled. output: what the sequence has generated before."""

    request: Request
    output: list[int]

    @property
    def params(self) -> SamplingParams:
        return self.request.sampling

    @property
    def step(self) -> int:
        return len(self.output)

    @property
    def seen(self) -> list[int]:
        return self.request.prompt_ids + self.output

    def banned(self) -> list[int]:
        """The tokens that must not come next."""
        found = [
            last
            for *before, last in self.request.bad_sequences
            if not before or (len(before) <= len(self.seen) and self.seen[-len(before) :] == before)
        ]
        end_id = self.request.end_id
        return [*found, end_id] if end_id is not None and self.step < self.request.min_tokens else found


def uniform(seed: int, step: int) -> float:
    """Element `step` of the SplitMix64 stream of the hashed seed, in [0, 1)."""
    return (_mix(_mix(seed) + (step + 1) * GOLDEN_GAMMA) >> 11) / 2**53


def _mix(z: int) -> int:
    z = (z & MASK64) ^ (z & MASK64) >> 30
    z = z * 0xBF58476D1CE4E5B9 & MASK64
    z ^= z >> 27
    z = z * 0x94D049BB133111EB & MASK64
    return z ^ z >> 31


def sample(logits: Tensor, draws: list[Draw]) -> Tensor:
    """logits: [rows, vocab] float32, finite -> [rows] int64, the chosen tokens."""
    logits = _adjust(logits, draws)
    tokens = logits.argmax(dim=-1)
    random = [row for row, draw in enumerate(draws) if not draw.params.greedy]
    if random:
        rows = torch.tensor(random)
        tokens[rows] = _sample_random(logits[rows], [draws[row] for row in random])
    return tokens


def _adjust(logits: Tensor, draws: list[Draw]) -> Tensor:
    logits = logits.clone()
    for values, draw in zip(logits, draws, strict=True):
        for token, bias in draw.request.logit_bias.items():
            values[token] += bias
        _penalise(values, draw)
        if banned := draw.banned():
            values[banned] = BANNED
    return logits


def _penalise(logits: Tensor, draw: Draw) -> None:
    params = draw.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(draw.seen)))
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if draw.output and (params.presence_penalty or params.frequency_penalty):
        counts = torch.bincount(torch.tensor(draw.output), minlength=len(logits))
        logits -= params.presence_penalty * (counts > 0) + params.frequency_penalty * counts


def _sample_random(logits: Tensor, draws: list[Draw]) -> Tensor:
    def column(values: list[float]) -> Tensor:  # [rows, 1]
        return torch.tensor(values, dtype=torch.float64)[:, None]

    params = [draw.params for draw in draws]
    vocab = logits.shape[1]
    temperature = column([p.temperature for p in params])
    ordered, token_ids = (logits.double() / temperature).sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab)
    ordered = ordered.masked_fill(rank >= column([p.top_k or vocab for p in params]), float("-inf"))
    probs = ordered.softmax(dim=-1)  # [rows, vocab] float64, best first
    before = probs.cumsum(dim=-1) - probs  # probability of all better tokens
    kept = (before < column([p.top_p for p in params])) & (probs >= column([p.min_p for p in params]) * probs[:, :1])
    kept &= probs > 0  # also where rounding leaves the sum before a banned token below top_p 1
    kept[:, 0] = True
    cumulative = (probs * kept).cumsum(dim=-1)
    point = column([uniform(draw.params.seed, draw.step) for draw in draws]) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, point, right=True)
    # Rounding may carry the point onto the total; the last kept token is the one it belongs to.
    chosen = torch.minimum(chosen, kept.sum(dim=-1, keepdim=True) - 1)
    return token_ids.gather(1, chosen)[:, 0]
