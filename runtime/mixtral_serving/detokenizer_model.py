"""The `postprocessing` Triton model: the detokenizer, and the stop requests that only it can send.

The ensemble never tells a running step that its client left. This model sees it on the next response and stops the
engine for that STREAM_ID; a stop string and a failure here take the same way.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mixtral_runtime.engine import FinishReason
from mixtral_runtime.errors import InvalidArgument, MixtralError
from mixtral_serving.counters import Counter, Counters
from mixtral_serving.detokenizer import Detokenizer
from mixtral_serving.metrics import Family, GaugePublisher, Kind, Registry
from mixtral_serving.reused_tensors import ReusedTensors
from mixtral_serving.stream_chunk import NO_EXTRAS, unpack_chunk
from mixtral_serving.tensors import Tensors
from mixtral_serving.triton import as_mixtral_error, call_engine, error_response
from mixtral_serving.vocabulary import Vocabulary

FAMILIES = (
    Family("mixtral_detokenizer_streams", Kind.GAUGE, "Texts under way in the detokenizer."),
    Family(
        "mixtral_detokenizer_stopping", Kind.GAUGE, "Streams that the detokenizer told to stop and that have not ended."
    ),
)

log = logging.getLogger(__name__)


class DetokenizerModel:
    def __init__(self, vocabulary: Vocabulary, registry: Registry) -> None:
        self._detokenizer = Detokenizer(vocabulary)
        self._texts = ReusedTensors(_text_tensor)
        self._counts = ReusedTensors(lambda count: pb_utils.Tensor("num_output_tokens", np.array([[count]], np.int32)))
        # A stop request waits for the engine model, so it must not hold up the one instance of this model.
        self._stopper = ThreadPoolExecutor(1, thread_name_prefix="stopper")
        self._stopping: set[int] = set()
        self._counters = Counters.of_server()
        self._metrics = GaugePublisher(
            registry,
            {
                "mixtral_detokenizer_streams": self._detokenizer.__len__,
                "mixtral_detokenizer_stopping": self._stopping.__len__,
            },
        )

    def answer(self, request: Any) -> Any:
        """Exactly one response per request, in order: the server matches them by number."""
        stream_id: int | None = None
        try:
            arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            if (packed := arrays.get("STREAM_CHUNK")) is not None:
                self._counters.increment(Counter.HANDLED)
                stream_id, ids, extras = unpack_chunk(packed)
            else:
                ids, extras = _token_ids(Tensors(arrays)), NO_EXTRAS
            reply = self._detokenizer.handle(stream_id, ids, extras)
        except Exception as error:
            if not isinstance(error, MixtralError):
                log.exception("a response could not be decoded")
                self._detokenizer.drop(stream_id)
                self._stop(stream_id, FinishReason.ERROR)
            self._forget(stream_id)  # the ensemble request ends with this error, nothing more comes for it
            return error_response(as_mixtral_error(error))
        if reply.ended:
            self._forget(stream_id)
        elif reply.stop or (reply.check and request.is_cancelled()):
            self._stop(stream_id, FinishReason.STOP if reply.stop else FinishReason.CANCELLED)
        # Always a text, even an empty one: NVIDIA's clients index it without looking.
        tensors = [self._texts[reply.text] if reply.tokens <= 1 else _text_tensor(reply.text)]
        if reply.count:
            tensors.append(self._counts[reply.count])
        if reply.outputs:
            tensors += [pb_utils.Tensor(name, array) for name, array in reply.outputs.items()]
        return pb_utils.InferenceResponse(tensors)

    def close(self) -> None:
        self._metrics.close()
        self._stopper.shutdown(wait=False, cancel_futures=True)

    def _stop(self, stream_id: int | None, reason: FinishReason) -> None:
        """Once per stream: responses that are already on their way see the same cancel."""
        if stream_id is None or stream_id in self._stopping:
            return
        self._stopping.add(stream_id)
        self._stopper.submit(_stop_engine, stream_id, reason)

    def _forget(self, stream_id: int | None) -> None:
        if stream_id is not None:
            self._stopping.discard(stream_id)


def _text_tensor(text: bytes) -> Any:
    return pb_utils.Tensor("OUTPUT", np.array([text], np.object_))


def _token_ids(inputs: Tensors) -> list[int]:
    """NVIDIA's inputs, of whoever calls this model by itself."""
    tokens = inputs.array("TOKENS_BATCH")
    if tokens is None:
        raise InvalidArgument("TOKENS_BATCH is missing")
    ids: list[int] = tokens.reshape(-1).tolist()
    length: int = inputs.one("SEQUENCE_LENGTH", len(ids))
    return ids[: max(length, 0)]


def _stop_engine(stream_id: int, reason: FinishReason) -> None:
    inputs = {
        "stop": np.array([[True]]),
        "stream_id": np.array([[stream_id]], np.uint64),
        "stop_reason": np.array([[reason.value]], np.object_),
    }
    for answer in call_engine(inputs, ["output_ids"]):
        if answer.has_error():
            log.error("the engine could not be told to stop: %s", answer.error().message())
