"""What `postprocessing` does: engine responses in, the client's responses out, one for one and in order."""

import time
from dataclasses import dataclass

import numpy as np

from mixtral_runtime.errors import unpack_error
from mixtral_serving.stream_chunk import NO_EXTRAS, ChunkExtras
from mixtral_serving.stream_context import StreamContext
from mixtral_serving.tensors import Array
from mixtral_serving.text_stream import TextStream
from mixtral_serving.vocabulary import Vocabulary

MAX_STOPS = 64
# Whether the client is gone is a question to the server that costs as much as all other work on a response. So it is
# asked so often per stream, with many streams so many times a second in all, and of each one at least every second.
CANCEL_CHECK_S = 0.1
CANCEL_CHECKS_PER_S = 200
MAX_CANCEL_CHECK_S = 1.0
# The engine model sends something for each stream every second. What is silent for so long was begun by somebody who
# called this model by himself, and never ends.
SILENT_S = 600.0
SWEEP_S = 60.0


@dataclass(slots=True)
class _Stream:
    """plain: all its responses but the last have text and counts alone, and no stop string can cut them."""

    context: StreamContext
    text: TextStream
    plain: bool
    checked_at: float
    seen_at: float
    cum_log_prob: float = 0.0
    begun: bool = False


@dataclass(slots=True)
class Reply:
    """text: UTF-8. count: of its tokens, 0 where that is not told. tokens: that the engine gave for it. outputs: the
    tensors of few responses, by name. stop: the engine should end this stream. ended: nothing more will come for it.
    check: it is time to ask whether the client is still there."""

    text: bytes
    tokens: int
    count: int = 0
    outputs: dict[str, Array] | None = None
    stop: bool = False
    ended: bool = False
    check: bool = False


class Detokenizer:
    """The text streams of all live requests, by STREAM_ID.

    A stream begins with the response that carries a context and ends with the one that carries a finish reason or an
    error; nothing is kept past that. Responses without a known stream are decoded by themselves.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._streams: dict[int, _Stream] = {}
        self._swept_at = time.monotonic()

    def __len__(self) -> int:
        return len(self._streams)

    def handle(self, stream_id: int | None, ids: list[int], extras: ChunkExtras = NO_EXTRAS) -> Reply:
        """One response of the engine: its token ids, and what else it carries. Raises the engine's error when that is
        among it."""
        now = time.monotonic()
        context = extras.context
        stream = self._streams.get(stream_id) if context is None and stream_id is not None else None
        if stream is None:
            stream = self._begin(stream_id, context, now)
        stream.seen_at = now
        if now - self._swept_at > SWEEP_S:
            self._sweep(now)
        if stream.plain and extras.has_context_at_most():  # nearly all responses
            count = len(ids) if stream.context.return_num_output_tokens else 0
            check = now - stream.checked_at > CANCEL_CHECK_S and self._is_check_due(stream, now)
            return Reply(stream.text.push(ids).text.encode(), len(ids), count, check=check)
        return self._handle_any(stream_id, stream, ids, extras, now)

    def _handle_any(
        self, stream_id: int | None, stream: _Stream, ids: list[int], extras: ChunkExtras, now: float
    ) -> Reply:
        if extras.error is not None:
            self.drop(stream_id)
            raise unpack_error(extras.error)
        finish_reason = extras.finish_reason
        was_stopped = stream.text.stopped
        piece = stream.text.push(ids, final=finish_reason is not None)
        outputs: dict[str, Array] = {}
        reply = Reply(piece.text.encode(), len(ids), outputs=outputs, ended=finish_reason is not None)
        if not stream.begun:
            stream.begun = True
            reply.text = (stream.context.prompt_text or "").encode() + reply.text
        if not was_stopped:
            reply.count = piece.tokens if stream.context.return_num_output_tokens else 0
            _add_token_outputs(outputs, stream, ids[: piece.tokens], extras)
            if piece.stopped:
                reply.stop = finish_reason is None
                finish_reason = "stop"
            if finish_reason is not None:
                outputs["finish_reason"] = np.array([[finish_reason.encode()]], np.object_)
        if reply.ended:
            self.drop(stream_id)
        elif not reply.stop:
            reply.check = self._is_check_due(stream, now)
        return reply

    def _sweep(self, now: float) -> None:
        self._swept_at = now
        for stream_id in [i for i, stream in self._streams.items() if now - stream.seen_at > SILENT_S]:
            del self._streams[stream_id]

    def _is_check_due(self, stream: _Stream, now: float) -> bool:
        interval = min(max(CANCEL_CHECK_S, len(self._streams) / CANCEL_CHECKS_PER_S), MAX_CANCEL_CHECK_S)
        if now - stream.checked_at < interval:
            return False
        stream.checked_at = now
        return True

    def drop(self, stream_id: int | None) -> None:
        """Forgets a stream; harmless when it is not there."""
        if stream_id is not None:
            self._streams.pop(stream_id, None)

    def _begin(self, stream_id: int | None, packed: bytes | None, now: float) -> _Stream:
        context = StreamContext([], [], return_output_ids=True) if packed is None else StreamContext.unpack(packed)
        text = TextStream(self._vocabulary, context.prompt_tail, context.stops, strip_space=context.strip_space)
        plain = not (context.stops or context.prompt_text or context.return_output_ids)
        stream = _Stream(context, text, plain, checked_at=now, seen_at=now)
        if packed is not None and stream_id is not None:
            self._streams[stream_id] = stream
        return stream


def _add_token_outputs(outputs: dict[str, Array], stream: _Stream, ids: list[int], extras: ChunkExtras) -> None:
    """Everything per token, cut behind the token in which a stop string ended: to `ids`."""
    count = len(ids)
    if stream.context.return_output_ids:
        outputs["output_ids"] = np.array([[ids]], np.int32)  # [batch, beams, tokens]
    if extras is NO_EXTRAS:
        return
    if extras.log_probs is not None:
        cut = extras.log_probs[:count]
        stream.cum_log_prob += sum(cut)
        outputs["output_log_probs"] = np.array([[cut]], np.float32)  # [batch, beams, tokens]
        outputs["cum_log_probs"] = np.array([[stream.cum_log_prob]], np.float32)
    if extras.top_ids is not None and extras.top_log_probs is not None:
        outputs["top_token_ids"] = np.array([extras.top_ids[:count]], np.int32)  # [batch, tokens, alternatives]
        outputs["top_token_log_probs"] = np.array([extras.top_log_probs[:count]], np.float32)
