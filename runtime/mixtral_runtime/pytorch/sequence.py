"""One request on its way through the engine."""

import time
from dataclasses import dataclass, field

from mixtral_runtime.engine import Counts, FinishReason, Output, Request, TopLogProbs
from mixtral_runtime.errors import MixtralError
from mixtral_runtime.pytorch.block_pool import block_key
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE


@dataclass(slots=True, eq=False)
class Sequence:
    """tokens: prompt and output, as far as they are known here. ahead: how many more the device has sampled in a step
    that was launched and not collected, 0 or 1 when a step is scheduled. computed: how many of all these have their
    keys and values in the cache, or will have after the steps that were launched; what is missing is the work left
    before the next token can be sampled. block_ids: where they are, none while it waits. admissions: how often it was
    given blocks. counted: prompt tokens that the statistics have. deadline, submitted_at, admitted_at (for the first
    time): on the monotonic clock, None for none and not yet."""

    id: int
    request: Request
    deadline: float | None
    tokens: list[int] = field(init=False)
    prompt_len: int = field(init=False)
    ahead: int = 0
    computed: int = 0
    admissions: int = 0
    counted: int = 0
    block_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top_log_probs: list[TopLogProbs] = field(default_factory=list)
    prompt_log_probs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: MixtralError | None = None
    submitted_at: float = field(default_factory=time.monotonic)
    admitted_at: float | None = None
    _delivered: int = 0  # output tokens that were handed out
    _begun: bool = False  # whether there was an output
    _block_keys: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)
        self.prompt_len = len(self.tokens)

    @property
    def output_len(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def pending(self) -> int:
        """Tokens to compute before the next can be sampled: the one just sampled, or what is left of the prompt and,
        after a preemption, of the output."""
        return len(self.tokens) + self.ahead - self.computed

    @property
    def ends(self) -> bool:
        """Whether the token that is on its way is the last, whichever it is."""
        return self.ahead > 0 and self.output_len + self.ahead >= self.request.max_tokens

    @property
    def reusable_tokens(self) -> int:
        """So many of the first tokens need not be computed if the cache has them. The last one's logits are needed; so
        are those of a prompt whose log probabilities are wanted and not there yet."""
        known = len(self.prompt_log_probs)
        if self.request.return_prompt_log_probs and known < self.prompt_len - 1:
            return known
        return len(self.tokens) - 1

    def block_key(self, index: int) -> bytes:
        """The key of block `index`, which the tokens fill."""
        keys = self._block_keys
        for start in range(len(keys) * BLOCK_SIZE, (index + 1) * BLOCK_SIZE, BLOCK_SIZE):
            keys.append(block_key(keys[-1] if keys else b"", self.tokens[start : start + BLOCK_SIZE]))
        return keys[index]

    def append(self, token: int, log_prob: float | None, top: TopLogProbs | None) -> None:
        """Takes a sampled token and sets the finish reason if it is the last. The end token is not part of the output,
        a stop sequence is."""
        if token == self.request.end_id:
            self.finish_reason = FinishReason.STOP
            return
        self.tokens.append(token)
        if log_prob is not None:
            self.log_probs.append(log_prob)
        if top is not None:
            self.top_log_probs.append(top)
        if self.request.stop_sequences and self._ends_with_stop_sequence():
            self.finish_reason = FinishReason.STOP
        elif self.output_len == self.request.max_tokens:
            self.finish_reason = FinishReason.LENGTH

    def _ends_with_stop_sequence(self) -> bool:
        stops = self.request.stop_sequences
        return any(len(stop) <= self.output_len and self.tokens[-len(stop) :] == stop for stop in stops)

    def take_output(self) -> Output:
        """Everything since the last output: however late the caller comes, nothing is lost and it gets one output."""
        request, since = self.request, self._delivered
        with_prompt = request.return_prompt_log_probs and self.counted == self.prompt_len and not self._begun
        queued_s = None if self._begun or self.admitted_at is None else self.admitted_at - self.submitted_at
        self._begun, self._delivered = True, self.output_len
        return Output(
            id=self.id,
            token_ids=self.tokens[self.prompt_len + since :],
            counts=Counts(self.prompt_len, self.output_len),
            log_probs=self.log_probs[since:] if request.return_log_probs else None,
            prompt_log_probs=self.prompt_log_probs if with_prompt else None,
            top_log_probs=self.top_log_probs[since:] if request.top_log_probs else None,
            final=self.finish_reason is not None,
            finish_reason=self.finish_reason,
            error=self.error,
            queued_s=queued_s,
        )
