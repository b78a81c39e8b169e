"""What the engine has produced and nobody has sent yet."""

from typing import TypeVar

from mixtral_runtime.engine import Output

Item = TypeVar("Item")


class Pending:
    """One entry per stream, sent in the order in which they became ready: a stream whose turn comes late gets all that
    it missed in one response.

    It holds at most max_tokens of each live request, so it is bounded by what the engine admits.
    """

    def __init__(self) -> None:
        self.ready: dict[int, list[Output]] = {}  # what may be sent now, by request
        self._held: dict[int, list[Output]] = {}
        self._held_tokens: dict[int, int] = {}

    def add(self, output: Output, interval: int = 1) -> None:
        """interval: how many tokens must come together before the stream's entry is ready; a final output always is."""
        if (waiting := self.ready.get(output.id)) is not None:
            waiting.append(output)
            return
        if interval == 1 and output.id not in self._held:
            self.ready[output.id] = [output]
            return
        parts = self._held.setdefault(output.id, [])
        parts.append(output)
        count = self._held_tokens.get(output.id, 0) + len(output.token_ids)
        if output.final or count >= interval:
            self.ready[output.id] = self._held.pop(output.id)
            self._held_tokens.pop(output.id, None)
        else:
            self._held_tokens[output.id] = count

    def take(self) -> Output:
        """The oldest ready entry as one output."""
        engine_id = next(iter(self.ready))
        parts = self.ready.pop(engine_id)
        return parts[0] if len(parts) == 1 else merged(parts)

    def drop(self, engine_id: int) -> None:
        self.ready.pop(engine_id, None)
        self._held.pop(engine_id, None)
        self._held_tokens.pop(engine_id, None)


def merged(parts: list[Output]) -> Output:
    """Successive outputs of one request as one."""
    last = parts[-1]
    return Output(
        last.id,
        [token for part in parts for token in part.token_ids],
        last.counts,
        _joined([part.log_probs for part in parts]),
        next((part.prompt_log_probs for part in parts if part.prompt_log_probs is not None), None),
        _joined([part.top_log_probs for part in parts]),
        last.final,
        last.finish_reason,
        last.error,
        next((part.queued_s for part in parts if part.queued_s is not None), None),
    )


def _joined(lists: list[list[Item] | None]) -> list[Item] | None:
    present = [items for items in lists if items is not None]
    return [item for items in present for item in items] if present else None
