"""The few calls of Triton's Python backend that the models share. Importable inside Triton's stub only.

Errors are returned, never raised: a raised one shows its traceback, with the server's paths, to the client.
"""

import gc
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mixtral_runtime.errors import Internal, MixtralError
from mixtral_serving.metrics import Family, Registry
from mixtral_serving.tensors import Array, Tensors, single_string

# Names of TritonError's codes; the stub fills pb_utils only after the model's modules are imported.
_CODES = {"INVALID_ARGUMENT": "INVALID_ARG", "UNAVAILABLE": "UNAVAILABLE", "INTERNAL": "INTERNAL"}


def engine_dir() -> Path:
    """The engine that this server serves. Raises with the fix when the environment does not say."""
    if not (value := os.environ.get("MIXTRAL_ENGINE_DIR")):
        raise RuntimeError("MIXTRAL_ENGINE_DIR is not set: start the server with scripts/serve.py or set it")
    return Path(value)


def check_numpy() -> None:
    """With numpy 2 this backend's stub hands over garbage without an error, so it must not start."""
    if int(np.__version__.split(".")[0]) >= 2:
        raise RuntimeError(f"numpy is {np.__version__}, Triton's Python backend needs a version below 2")


def freeze_garbage() -> None:
    """At the end of `initialize`. What is there by then lives as long as the process; a full collection that went
    through it would stop all streams for tens of milliseconds."""
    gc.collect()
    gc.freeze()


def serialize_fast() -> None:
    """In `initialize` of a model that answers with text. The backend turns strings into a tensor's bytes in Python, by
    an iterator that costs 6 of the 17 microseconds of a response's text; a single one needs none."""
    by_iterator = pb_utils.serialize_byte_tensor

    def serialize(array: Array) -> Any:
        packed = single_string(array)
        return by_iterator(array) if packed is None else packed

    pb_utils.serialize_byte_tensor = serialize


def metric_registry(families: Iterable[Family], args: dict[str, str]) -> Registry:
    """args: what `initialize` was given."""
    labels = {"model": args["model_name"], "version": args["model_version"]}
    return Registry(families, pb_utils.MetricFamily, labels)


def read(request: Any) -> Tensors:
    return Tensors({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})


def response(outputs: dict[str, Array]) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])


def error_response(error: MixtralError) -> Any:
    code = getattr(pb_utils.TritonError, _CODES[error.code])
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.text, code))


def as_mixtral_error(error: Exception) -> MixtralError:
    """What a client may see of an unexpected exception: its kind. The rest is in the log."""
    return error if isinstance(error, MixtralError) else Internal(f"unexpected {type(error).__name__}, see the log")


class TritonSender:
    """streams.ResponseSender over the backend's response sender, which no model uses by itself."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._ended = False

    def send(self, response: Any, final: bool) -> None:
        """The backend drops the tensors that the client did not ask for after it gave up Python's lock. If it held the
        last reference, arrays would be freed beside running Python code, and the process would end some requests later.
        """
        kept = response.output_tensors()
        self._ended = final
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)
        del kept

    def end(self) -> None:
        """The final flag without a response."""
        self._ended = True
        self._sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        return not self._ended and bool(self._sender.is_cancelled())


def call_engine(inputs: dict[str, Array], outputs: list[str], request_id: str = "") -> list[Any]:
    """A request to the engine model from another model; returns its responses, errors included."""
    control = {
        "input_lengths": np.zeros((1, 1), np.int32),
        "request_output_len": np.zeros((1, 1), np.int32),
    }
    request = pb_utils.InferenceRequest(
        model_name="tensorrt_llm",
        request_id=request_id,
        requested_output_names=outputs,
        inputs=[pb_utils.Tensor(name, array) for name, array in (control | inputs).items()],
    )
    return list(request.exec(decoupled=True))
