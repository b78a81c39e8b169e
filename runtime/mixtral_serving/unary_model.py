"""The `unary` Triton model: a plain call for clients without streams, in front of the decoupled ensemble.

Triton refuses unary calls on decoupled models, so this one calls the ensemble without streaming and passes its one
response on.
"""

import logging
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mixtral_runtime.errors import Internal, unpack_error
from mixtral_serving.tensors import Array
from mixtral_serving.triton import TritonSender, as_mixtral_error, call_engine, error_response, response

MAX_CONCURRENT = 64
_CANCEL_CHECK_S = 0.1

log = logging.getLogger(__name__)


class _Call:
    """One unary request under way. The lock keeps the cancel check off a sender that was already answered."""

    def __init__(self, sender: TritonSender) -> None:
        self.request_id = str(uuid.uuid4())  # ours, so that a stop request hits this call alone
        self._sender = sender
        self._lock = threading.Lock()
        self._stopping = False

    def answer(self, answer: Any) -> None:
        with self._lock:
            self._sender.send(answer, final=True)

    def newly_cancelled(self) -> bool:
        with self._lock:
            if self._stopping or not self._sender.is_cancelled():
                return False
            self._stopping = True
            return True


class UnaryModel:
    def __init__(self) -> None:
        self._calls: set[_Call] = set()
        self._pool = ThreadPoolExecutor(MAX_CONCURRENT, thread_name_prefix="unary")
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="unary-cancel", daemon=True)
        self._watcher.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            call = _Call(TritonSender(request.get_response_sender()))
            # Copied: the tensors' memory is the request's, which this thread gives back when execute returns.
            inputs = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
            inputs["stream"] = np.zeros((1, 1), np.bool_)
            self._calls.add(call)
            self._pool.submit(self._serve, call, inputs, list(request.requested_output_names()))

    def close(self) -> None:
        self._closing.set()
        self._watcher.join()
        self._pool.shutdown(wait=True)

    def _serve(self, call: _Call, inputs: dict[str, Array], outputs: list[str]) -> None:
        try:
            answer = _one_response(call.request_id, inputs, outputs)
        except Exception as error:
            log.exception("a unary call failed")
            answer = error_response(as_mixtral_error(error))
        finally:
            self._calls.discard(call)
        call.answer(answer)

    def _watch(self) -> None:
        while not self._closing.wait(_CANCEL_CHECK_S):
            for call in list(self._calls):
                if call.newly_cancelled():
                    call_engine({"stop": np.array([[True]])}, ["output_ids"], call.request_id)


def _one_response(request_id: str, inputs: dict[str, Array], outputs: list[str]) -> Any:
    request = pb_utils.InferenceRequest(
        model_name="ensemble",
        request_id=request_id,
        requested_output_names=outputs,
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
    )
    answers = list(request.exec(decoupled=True))
    for answer in answers:
        if answer.has_error():
            # The code is lost on the way through the ensemble, so it is read back from the text.
            return error_response(unpack_error(answer.error().message().removeprefix("in ensemble 'ensemble', ")))
    filled = [answer for answer in answers if answer.output_tensors()]
    if len(filled) > 1:
        raise Internal(f"the ensemble gave {len(filled)} responses to a call without streaming, it must give one")
    # None: the client asked only for outputs that this answer does not have.
    return response({tensor.name(): tensor.as_numpy() for answer in filled for tensor in answer.output_tensors()})
