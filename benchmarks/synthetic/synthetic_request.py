"""One request on its way through the synthetic engine."""

import time
from dataclasses import dataclass, field

from synthetic_tokens import END_TOKEN, FIRST_TOKEN, expected_log_prob, expected_tokens, prompt_key

from mixtral_runtime.engine import Counts, FinishReason, Output, Request, TopLogProbs
from mixtral_runtime.errors import MixtralError


@dataclass(frozen=True, slots=True)
class Piece:
    """What one output covers: tokens `since` to `until`. first: no output came before. queued_s: on the first alone.
    reason: set on the last."""

    since: int
    until: int
    first: bool
    queued_s: float | None
    reason: FinishReason | None
    error: MixtralError | None


@dataclass(slots=True, eq=False)
class SyntheticRequest:
    """tokens: all that will be said, decided when the request is made, so that a step only counts. natural_end: why
    there are no more of them. fails_after: fails after so many tokens, None never. emitted: tokens said so far.
    slot: in the record of emissions."""

    request: Request
    id: int = 0
    key: int = field(init=False)
    tokens: list[int] = field(init=False)
    natural_end: FinishReason = field(init=False)
    submitted_ns: int = field(default_factory=time.monotonic_ns)
    admitted_ns: int | None = None
    prefill_left: int = field(init=False)
    fails_after: int | None = None
    emitted: int = 0
    slot: int | None = None
    finish_reason: FinishReason | None = None
    error: MixtralError | None = None
    _taken: int = 0
    _begun: bool = False

    def __post_init__(self) -> None:
        request = self.request
        self.key = prompt_key(request.prompt_ids)
        self.prefill_left = len(request.prompt_ids)
        tokens = expected_tokens(request.prompt_ids, request.max_tokens)
        if (stop := _first_stop(tokens, request.stop_sequences)) is not None:
            self.tokens, self.natural_end = tokens[:stop], FinishReason.STOP
        else:
            self.tokens, self.natural_end = tokens, FinishReason.LENGTH

    @property
    def fails(self) -> bool:
        return self.fails_after is not None and self.emitted >= self.fails_after

    @property
    def complete(self) -> bool:
        return self.emitted == len(self.tokens)

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values a real engine would hold."""
        return len(self.request.prompt_ids) + self.emitted

    def take(self) -> Piece:
        """Everything since the last output."""
        first = not self._begun
        queued_s = (self.admitted_ns - self.submitted_ns) / 1e9 if first and self.admitted_ns is not None else None
        piece = Piece(self._taken, self.emitted, first, queued_s, self.finish_reason, self.error)
        self._taken, self._begun = self.emitted, True
        return piece

    def output(self, piece: Piece) -> Output:
        request = self.request
        tokens = self.tokens[piece.since : piece.until]
        prompt_log_probs = None
        if request.return_prompt_log_probs and piece.first and self.prefill_left == 0:
            prompt_log_probs = [expected_log_prob(token) for token in request.prompt_ids[1:]]
        return Output(
            id=self.id,
            token_ids=tokens,
            counts=Counts(len(request.prompt_ids), piece.until),
            log_probs=[expected_log_prob(token) for token in tokens] if request.return_log_probs else None,
            prompt_log_probs=prompt_log_probs,
            top_log_probs=[_alternatives(token, request.top_log_probs) for token in tokens]
            if request.top_log_probs
            else None,
            final=piece.reason is not None,
            finish_reason=piece.reason,
            error=piece.error,
            queued_s=piece.queued_s,
        )


def _alternatives(token: int, count: int) -> TopLogProbs:
    """The token itself and the ids after it, each one nat less likely than the one before."""
    ids = [FIRST_TOKEN + (token - FIRST_TOKEN + i) % (END_TOKEN - FIRST_TOKEN) for i in range(count)]
    return TopLogProbs(ids, [expected_log_prob(token) - i for i in range(count)])


def _first_stop(tokens: list[int], stops: list[list[int]]) -> int | None:
    """How many tokens there are up to and with the first stop sequence."""
    for end in range(1, len(tokens) + 1) if stops else ():
        if any(len(stop) <= end and tokens[end - len(stop) : end] == stop for stop in stops):
            return end
    return None
