"""Requests and responses as Triton's tensors: pure functions, no connection.

All inputs have a leading batch dimension of 1. Any output may be missing from any response.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from mixtral_client.errors import InvalidArgument, ProtocolError
from mixtral_client.generation import GenerationOptions, Message

ENSEMBLE = "ensemble"
ENGINE_INFO = "engine_info"
PREPROCESSING = "preprocessing"

_SCALARS: dict[str, type[np.generic]] = {  # options whose tensor has their name and the shape [1, 1]
    "max_tokens": np.int32,
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "repetition_penalty": np.float32,
    "presence_penalty": np.float32,
    "frequency_penalty": np.float32,
    "min_tokens": np.int32,
    "seed": np.uint64,
    "exclude_input_in_output": np.bool_,
    "ignore_eos": np.bool_,
    "timeout_ms": np.int32,
    "stream_interval": np.int32,
    "return_output_ids": np.bool_,
    "return_log_probs": np.bool_,
    "return_prompt_log_probs": np.bool_,
    "top_log_probs": np.int32,
    "stream": np.bool_,
}


def generation_request(
    prompt: str | None,
    messages: Sequence[Message] | None,
    input_ids: Sequence[int] | None,
    options: GenerationOptions,
    request_id: str,
) -> Any:
    """The `ModelInferRequest` of a generation. Exactly one of prompt, messages and input_ids must be given.

    Raises InvalidArgument for none or several of them, and for a value that does not fit into its tensor.
    """
    request = service_pb2.ModelInferRequest(model_name=ENSEMBLE, id=request_id)
    # Without it a stream whose end comes after its last token would have no end that a client can see.
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    _add_prompt(request, prompt, messages, input_ids)
    for name, dtype in _SCALARS.items():
        value = getattr(options, name)
        # False leaves out what is off by default, so that a plain request stays a small one.
        if value is not None and (value is not False or name in ("stream", "exclude_input_in_output")):
            _add_input(request, name, [[_checked(name, value, dtype)]], dtype)
    for name, words in (("stop_words", options.stop_words), ("bad_words", options.bad_words)):
        if words:
            _add_input(request, name, [[word.encode() for word in words]], np.object_)
    if options.logit_bias:
        ids, values = zip(*options.logit_bias, strict=True)
        _add_input(request, "logit_bias_ids", [[_checked("logit_bias", i, np.int32) for i in ids]], np.int32)
        _add_input(request, "logit_bias_values", [list(values)], np.float32)
    for name in ("return_num_input_tokens", "return_num_output_tokens"):
        _add_input(request, name, [[True]], np.bool_)
    for name in _requested_outputs(options):
        request.outputs.add(name=name)
    return request


def engine_info_request() -> Any:
    """The `ModelInferRequest` for the server's manifest, limits and statistics."""
    request = service_pb2.ModelInferRequest(model_name=ENGINE_INFO)
    _add_input(request, "echo", [[b""]], np.object_)  # Triton takes no request without any input
    request.outputs.add(name="info")
    return request


def vocabulary_request() -> Any:
    """The `ModelInferRequest` for the bytes of every token."""
    request = engine_info_request()
    del request.outputs[:]
    for name in ("vocabulary", "special_ids"):
        request.outputs.add(name=name)
    return request


def tokenize_request(text: str | None = None, messages: Sequence[Message] | None = None) -> Any:
    """The `ModelInferRequest` for the token ids that the server makes of a prompt; one of the two is given."""
    request = service_pb2.ModelInferRequest(model_name=PREPROCESSING)
    if messages is not None:
        _add_input(request, "MESSAGES", [[json.dumps(list(messages), ensure_ascii=False).encode()]], np.object_)
    else:
        _add_input(request, "QUERY", [[(text or "").encode()]], np.object_)
    _add_input(request, "REQUEST_OUTPUT_LEN", [[1]], np.int32)  # required, and of no effect on the ids
    request.outputs.add(name="INPUT_ID")
    return request


def read_engine_info(response: Any) -> dict[str, Any]:
    """Decodes the `ModelInferResponse` of `engine_info`. Raises ProtocolError if it is not the expected JSON object."""
    array = InferResult(response).as_numpy("info")
    try:
        info = json.loads(array.reshape(-1)[0])
    except (AttributeError, IndexError, ValueError) as error:
        raise ProtocolError(f"engine_info did not answer with JSON: {error}") from error
    if not isinstance(info, dict):
        raise ProtocolError(f"engine_info answered with {type(info).__name__}, it must be a JSON object")
    return info


def read_vocabulary(response: Any) -> tuple[list[bytes], frozenset[int]]:
    """Decodes the `ModelInferResponse` to a `vocabulary_request`: each token's bytes, and the special ids."""
    result = InferResult(response)
    tokens, special = result.as_numpy("vocabulary"), result.as_numpy("special_ids")
    if tokens is None or special is None:
        raise ProtocolError("engine_info answered without vocabulary")
    return tokens.reshape(-1).tolist(), frozenset(special.reshape(-1).tolist())


def read_token_ids(response: Any) -> list[int]:
    """Decodes the `ModelInferResponse` to a `tokenize_request`. Raises ProtocolError if it has no ids."""
    array = InferResult(response).as_numpy("INPUT_ID")
    if array is None:
        raise ProtocolError("preprocessing answered without INPUT_ID")
    ids: list[int] = array.reshape(-1).tolist()
    return ids


def _add_prompt(
    request: Any, prompt: str | None, messages: Sequence[Message] | None, input_ids: Sequence[int] | None
) -> None:
    given = [value for value in (prompt, messages, input_ids) if value is not None]
    if len(given) != 1:
        raise InvalidArgument(f"{len(given)} of prompt, messages and input_ids are given, it must be exactly one")
    if prompt is not None:
        _add_input(request, "text_input", [[prompt.encode()]], np.object_)
    elif messages is not None:
        _add_input(request, "messages", [[json.dumps(list(messages), ensure_ascii=False).encode()]], np.object_)
    elif input_ids is not None:
        _add_input(request, "input_ids", [[_checked("input_ids", i, np.int32) for i in input_ids]], np.int32)


def _checked(name: str, value: float, dtype: type[np.generic]) -> float:
    if issubclass(dtype, np.integer):
        limits = np.iinfo(dtype)
        if not limits.min <= value <= limits.max:
            raise InvalidArgument(f"{name} is {value}, it must be from {limits.min} to {limits.max}")
    return value


def _add_input(request: Any, name: str, values: list[list[Any]], dtype: type[np.generic]) -> None:
    array: npt.NDArray[Any] = np.array(values, dtype=dtype)  # [1, n]
    request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
    raw = serialize_byte_tensor(array).item() if dtype is np.object_ else array.tobytes()
    request.raw_input_contents.append(raw)


def _requested_outputs(options: GenerationOptions) -> list[str]:
    """Each output costs the server time on every response, so only what was asked for is requested."""
    names = ["text_output", "finish_reason", "num_input_tokens", "num_output_tokens"]
    if options.return_output_ids:
        names.append("output_ids")
    if options.return_log_probs:
        names += ["output_log_probs", "cum_log_probs"]
    if options.return_prompt_log_probs:
        names.append("prompt_log_probs")
    if options.top_log_probs:
        names += ["top_token_ids", "top_token_log_probs"]
    return names
