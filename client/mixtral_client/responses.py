"""One response of the ensemble, decoded.

It is read for every token of every stream, so it goes past `tritonclient`'s InferResult, which searches all outputs
for each that is asked for and makes an array of it: 20 µs of processor time, against 5 µs here.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from mixtral_client.errors import ProtocolError
from mixtral_client.generation import TokenLogProb

_FINAL = "triton_final_response"
_NUMBERS = {"INT32": np.dtype("<i4"), "FP32": np.dtype("<f4")}


@dataclass(slots=True)
class Response:
    """num_output_tokens counts this response alone."""

    text: str
    token_ids: list[int]
    log_probs: list[float]
    cum_log_prob: float | None
    top_log_probs: list[list[TokenLogProb]]
    prompt_log_probs: list[float]
    finish_reason: str | None
    num_input_tokens: int | None
    num_output_tokens: int | None
    final: bool

    @property
    def tokens(self) -> bool:
        """Whether it brought tokens, as a heartbeat does not."""
        return bool(self.text or self.token_ids or self.log_probs)


def read_response(response: Any) -> Response:
    """Decodes a `ModelInferResponse` of the ensemble. Raises ProtocolError for one that breaks the protocol."""
    values: dict[str, list[Any]] = {}
    alternatives = 0
    raw = response.raw_output_contents
    if len(raw) != len(response.outputs):
        raise ProtocolError(f"the response has {len(response.outputs)} outputs and the contents of {len(raw)}")
    for output, content in zip(response.outputs, raw, strict=True):
        name, datatype = output.name, output.datatype
        try:
            if datatype == "BYTES":
                values[name] = found = _strings(content)
            elif datatype in _NUMBERS:
                values[name] = found = np.frombuffer(content, _NUMBERS[datatype]).tolist()
            else:
                continue
            if len(found) != (count := prod(output.shape)):
                has = f"{len(found)} values in {len(content)} bytes"
                raise ProtocolError(f"{name} has {has}, its shape {list(output.shape)} needs {count}")
            if name == "top_token_ids":  # [1, tokens, alternatives]
                alternatives = output.shape[-1]
        except UnicodeDecodeError as error:
            raise ProtocolError(f"{name} is not UTF-8: {error}") from error
        except ValueError as error:
            raise ProtocolError(f"{name} cannot be decoded: {error}") from error
    parameters = response.parameters
    get = values.get
    return Response(
        text="".join(get("text_output", ())),
        token_ids=get("output_ids", []),
        log_probs=get("output_log_probs", []),
        cum_log_prob=_first(get("cum_log_probs")),
        top_log_probs=_top_log_probs(get("top_token_ids", []), get("top_token_log_probs", []), alternatives),
        prompt_log_probs=get("prompt_log_probs", []),
        finish_reason=_first(get("finish_reason")) or None,
        num_input_tokens=_first(get("num_input_tokens")),
        num_output_tokens=_first(get("num_output_tokens")),
        final=_FINAL in parameters and parameters[_FINAL].bool_param,
    )


def _first(values: list[Any] | None) -> Any:
    return values[0] if values else None


def _strings(content: bytes) -> list[str]:
    """Each string stands behind its length in bytes, a number of 4 bytes. Raises ValueError for other contents, and for
    text that is not UTF-8."""
    strings, position, end = [], 0, len(content)
    while position < end:
        begin = position + 4
        position = begin + int.from_bytes(content[position:begin], "little")
        if position > end:
            raise ValueError("the string is cut off")
        strings.append(content[begin:position].decode())
    return strings


def _top_log_probs(ids: list[int], log_probs: list[float], alternatives: int) -> list[list[TokenLogProb]]:
    """ids, log_probs: [tokens · alternatives]."""
    if not ids or not log_probs:
        return []
    pairs = list(map(TokenLogProb, ids, log_probs))
    return [pairs[begin : begin + alternatives] for begin in range(0, len(pairs), alternatives)]
