"""From logits to the next token of each sequence, and the log probabilities that a request may ask for.

Every row is treated on its own and the random number depends on (seed, step) alone, so a request's tokens are the same
in every batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from mixtral_runtime.engine import Request, SamplingParams, TopLogProbs

MASK64 = 2**64 - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
# Lower than any logit, yet finite: a request that bans every token still has a distribution.
BANNED = torch.finfo(torch.float32).min


@dataclass(frozen=True, slots=True, eq=False)
class Constraints:
    """What a request says of single tokens, made once and used at every draw. bias: token ids (int64) and what is added
    to their logits (float32)."""

    end_id: int | None = None
    min_tokens: int = 0
    bad_sequences: list[list[int]] = field(default_factory=list)
    bias: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, request: Request) -> Self:
        ids, values = list(request.logit_bias), list(request.logit_bias.values())
        bias = (torch.tensor(ids), torch.tensor(values, dtype=torch.float32)) if ids else None
        return cls(request.end_id, request.min_tokens, request.bad_sequences, bias)

    def banned(self, tokens: Sequence[int], step: int) -> list[int]:
        """The tokens that must not follow `tokens`, prompt and output so far."""
        found = [
            last
            for *before, last in self.bad_sequences
            if not before or (len(before) <= len(tokens) and list(tokens[-len(before) :]) == before)
        ]
        return [*found, self.end_id] if self.end_id is not None and step < self.min_tokens else found


NO_CONSTRAINTS = Constraints()


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row is sampled. step: how many tokens the sequence has generated before. seen: prompt and output so far,
    of which the first prompt_len are the prompt."""

    params: SamplingParams
    step: int
    seen: Sequence[int]
    prompt_len: int = 0
    constraints: Constraints = NO_CONSTRAINTS


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) for one draw: element `step` of the SplitMix64 stream of the hashed seed.

    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators". Counter-based: no state to keep, and
    the same on every device. The seed is hashed so that neighbouring seeds do not share a shifted stream.
    """
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
        rows = torch.tensor(random, device=logits.device)
        tokens[rows] = _sample_random(logits[rows], [draws[row] for row in random])
    return tokens


def _adjust(logits: Tensor, draws: list[Draw]) -> Tensor:
    """Biases, then penalties, then bans, so that nothing lifts a ban. Rows that none of them concerns stay as they are,
    and a tensor without others is not copied."""
    rows = [(row, draw, draw.constraints.banned(draw.seen, draw.step)) for row, draw in enumerate(draws)]
    rows = [(row, draw, banned) for row, draw, banned in rows if banned or _moves_logits(draw)]
    if not rows:
        return logits
    logits = logits.clone()
    for row, draw, banned in rows:
        values = logits[row]  # a view
        if draw.constraints.bias is not None:
            ids, bias = (tensor.to(logits.device) for tensor in draw.constraints.bias)
            values[ids] += bias
        _penalise(values, draw)
        if banned:
            values[banned] = BANNED
    return logits


def _moves_logits(draw: Draw) -> bool:
    params = draw.params
    penalties = (params.repetition_penalty - 1.0, params.presence_penalty, params.frequency_penalty)
    return draw.constraints.bias is not None or any(penalties)


def _penalise(logits: Tensor, draw: Draw) -> None:
    """In place, one row. Repetition: Keskar et al. 2019, arXiv:1909.05858, section 4.1, over prompt and output, as
    TensorRT-LLM and transformers. Presence and frequency: over the output alone, as OpenAI's API defines them."""
    params = draw.params
    if params.repetition_penalty != 1.0 and draw.seen:
        seen = torch.tensor(sorted(set(draw.seen)), device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    output = draw.seen[draw.prompt_len :]
    if output and (params.presence_penalty or params.frequency_penalty):
        counts = torch.bincount(torch.tensor(output, device=logits.device), minlength=len(logits))
        logits -= params.presence_penalty * (counts > 0) + params.frequency_penalty * counts


def _sample_random(logits: Tensor, draws: list[Draw]) -> Tensor:
    """Temperature, then top-k, then top-p over what is left renormalised, then min-p; the order of TensorRT-LLM."""

    def column(values: list[float]) -> Tensor:  # [rows, 1]
        return torch.tensor(values, device=logits.device, dtype=torch.float64)[:, None]

    params = [draw.params for draw in draws]
    vocab = logits.shape[1]
    temperature = column([p.temperature for p in params])
    ordered, token_ids = (logits.double() / temperature).sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab, device=logits.device)
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


def token_log_probs(logits: Tensor, token_ids: Tensor) -> list[float]:
    """logits: [rows, vocab] float32, token_ids: [rows]. Natural logarithm, of the raw distribution."""
    chosen: list[float] = logits.log_softmax(dim=-1).gather(1, token_ids[:, None])[:, 0].tolist()
    return chosen


def top_log_probs(logits: Tensor, count: int) -> TopLogProbs:
    """logits: [vocab] float32, one row. The `count` most likely tokens of the raw distribution."""
    values, token_ids = logits.log_softmax(dim=-1).sort(descending=True, stable=True)
    return TopLogProbs(token_ids[:count].tolist(), values[:count].tolist())
