"""Many requests at once: texts to token ids, and spans of tokens to their log likelihoods."""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from mixtral_client.aio import AsyncClient
from mixtral_client.errors import (
    IdleTimeout,
    MixtralClientError,
    ProtocolError,
    ServerError,
    ServerUnreachable,
    Unavailable,
)
from mixtral_client.evaluation.texts import Span
from mixtral_client.generation import GenerationOptions

Progress = Callable[[int, int], object]  # of (done, total)

_RETRY_DELAYS_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)  # while the server's queue is full
_OPTIONS = GenerationOptions(max_tokens=1, ignore_eos=True, return_prompt_log_probs=True)


@dataclass(slots=True)
class Scores:
    """log_likelihoods: natural logarithm, of each span; None for one that has none. errors: how many by kind.
    first_error: one of them, in words. interrupted: whether the run was cancelled."""

    log_likelihoods: list[float | None]
    errors: Counter[str] = field(default_factory=Counter)
    first_error: str | None = None
    interrupted: bool = False

    @property
    def done(self) -> int:
        return sum(value is not None for value in self.log_likelihoods)

    @property
    def partial(self) -> bool:
        return self.done < len(self.log_likelihoods)

    def note(self, error: MixtralClientError) -> None:
        self.errors[error.code if isinstance(error, ServerError) else type(error).__name__] += 1
        self.first_error = self.first_error or str(error)


class Scorer:
    """Asks one server, `concurrency` requests at a time."""

    def __init__(self, client: AsyncClient, concurrency: int) -> None:
        self._client = client
        self._concurrency = concurrency

    async def tokenize(self, texts: Sequence[str], progress: Progress | None = None) -> list[list[int]]:
        """The ids that the server makes of each text, with BOS in front; none for an empty text, which has nothing to
        predict. Raises what the client raises."""
        found: list[list[int]] = [[] for _ in texts]

        async def one(index: int) -> None:
            found[index] = await self._client.tokenize(texts[index])

        await self._for_each([i for i, text in enumerate(texts) if text], one, progress)
        return found

    async def score(self, spans: Sequence[Span], progress: Progress | None = None) -> Scores:
        """The log likelihood of each span. A request that fails is counted and left out; when the server is gone or the
        task is cancelled, what was found so far is returned."""
        scores = Scores([None] * len(spans))

        async def one(index: int) -> None:
            try:
                scores.log_likelihoods[index] = await self._log_likelihood(spans[index])
            except (ServerUnreachable, IdleTimeout) as error:
                scores.note(error)
                raise
            except MixtralClientError as error:
                scores.note(error)

        try:
            await self._for_each(range(len(spans)), one, progress)
        except (ServerUnreachable, IdleTimeout):
            pass  # counted; the rest would meet the same
        except asyncio.CancelledError:
            scores.interrupted = True
        return scores

    async def _log_likelihood(self, span: Span) -> float:
        for delay in (*_RETRY_DELAYS_S, None):
            try:
                result = await self._client.generate(input_ids=span.token_ids, options=_OPTIONS)
                break
            except Unavailable:
                if delay is None:
                    raise
                await asyncio.sleep(delay)
        found = result.prompt_log_probs
        if len(found) != len(span.token_ids) - 1:
            raise ProtocolError(
                f"a prompt of {len(span.token_ids)} tokens came back with {len(found)} log probabilities, "
                f"it must be {len(span.token_ids) - 1}"
            )
        return math.fsum(found[span.first - 1 :])

    async def _for_each(
        self, indices: Sequence[int], call: Callable[[int], Awaitable[None]], progress: Progress | None
    ) -> None:
        """Calls for each index, some at a time. The first exception ends all, and so does a cancel."""
        waiting, done = iter(indices), 0

        async def work() -> None:
            nonlocal done
            for index in waiting:
                await call(index)
                done += 1
                if progress is not None:
                    progress(done, len(indices))

        workers = [asyncio.create_task(work()) for _ in range(min(self._concurrency, len(indices)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*workers, return_exceptions=True)
