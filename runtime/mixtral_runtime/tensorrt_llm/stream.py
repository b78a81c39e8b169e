"""One request on its way through the executor, and what its caller has not fetched yet."""

import time
from dataclasses import dataclass, field

from mixtral_runtime.engine import Counts, FinishReason, Output, Request
from mixtral_runtime.errors import MixtralError
from mixtral_runtime.tensorrt_llm.conversion import Piece


@dataclass(slots=True, eq=False)
class Stream:
    """deadline, submitted_at: on the monotonic clock, None for none. late: it was cancelled because the deadline
    passed."""

    id: int
    request: Request
    deadline: float | None
    late: bool = False
    submitted_at: float = field(default_factory=time.monotonic)
    received: int = 0  # tokens in all
    finish_reason: FinishReason | None = None
    error: MixtralError | None = None
    _token_ids: list[int] = field(default_factory=list)
    _log_probs: list[float] | None = None
    _prompt_log_probs: list[float] | None = None
    _queued_s: float | None = None

    def __post_init__(self) -> None:
        self._log_probs = [] if self.request.return_log_probs else None

    def add(self, piece: Piece) -> None:
        if self.received == 0 and piece.running_s is not None:
            # The executor's own time of arrival is that at which it took the request from its queue.
            self._queued_s = max(0.0, time.monotonic() - self.submitted_at - piece.running_s)
        self.received += len(piece.token_ids)
        self._token_ids += piece.token_ids
        if self._log_probs is not None and piece.token_ids:
            # Without them for some tokens (a cancel can lose them) those of this output could not be told apart.
            self._log_probs = None if piece.log_probs is None else self._log_probs + piece.log_probs
        if piece.prompt_log_probs is not None:
            self._prompt_log_probs = piece.prompt_log_probs
        self.finish_reason, self.error = piece.finish_reason, piece.error
        if self.late and self.finish_reason is FinishReason.CANCELLED:
            self.finish_reason = FinishReason.TIMEOUT

    def take_output(self) -> Output:
        """Everything since the last output: however late the caller comes, it gets one."""
        output = Output(
            id=self.id,
            token_ids=self._token_ids,
            counts=Counts(len(self.request.prompt_ids), self.received),
            log_probs=self._log_probs,
            prompt_log_probs=self._prompt_log_probs,
            final=self.finish_reason is not None,
            finish_reason=self.finish_reason,
            error=self.error,
            queued_s=self._queued_s,
        )
        self._token_ids, self._prompt_log_probs, self._queued_s = [], None, None
        self._log_probs = [] if self.request.return_log_probs else None
        return output
