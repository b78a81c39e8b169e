"""Talking to the real Triton server of the system tests."""

import json
import queue
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as grpc

from mixtral_serving.server.command import Address
from mixtral_serving.server.free_address import free_address as free_address

ANSWER_S = 60.0  # nothing may take longer; a stream that does hangs

DTYPES: dict[str, tuple[str, Any]] = {
    "text_input": ("BYTES", np.object_),
    "messages": ("BYTES", np.object_),
    "stop_words": ("BYTES", np.object_),
    "bad_words": ("BYTES", np.object_),
    "embedding_bias_words": ("BYTES", np.object_),
    "stop_reason": ("BYTES", np.object_),
    "input_ids": ("INT32", np.int32),
    "seed": ("UINT64", np.uint64),
}
FLOATS = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "embedding_bias_weights", "logit_bias_values",
)  # fmt: skip


def infer_input(name: str, value: Any) -> grpc.InferInput:
    """A tensor [1, n] of the ensemble's type for `name`."""
    dtype: Any
    if name in FLOATS:
        triton, dtype = "FP32", np.float32
    elif isinstance(value, bool):
        triton, dtype = "BOOL", np.bool_
    else:
        triton, dtype = DTYPES.get(name, ("INT32", np.int32))
    values = value if isinstance(value, list) else [value]
    if triton == "BYTES":
        values = [v.encode() if isinstance(v, str) else v for v in values]
    array = np.array([values], dtype)
    tensor = grpc.InferInput(name, array.shape, triton)
    tensor.set_data_from_numpy(array)
    return tensor


@dataclass
class Answer:
    """Everything one stream brought."""

    texts: list[str] = field(default_factory=list)
    responses: list[grpc.InferResult] = field(default_factory=list)
    error: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def values(self, name: str) -> list[Any]:
        """The values of an output over all responses that carry it."""
        arrays = [response.as_numpy(name) for response in self.responses]
        return [value for array in arrays if array is not None for value in array.reshape(-1).tolist()]


class Stream:
    """One gRPC stream with one request on it."""

    def __init__(self, url: str, model: str, inputs: dict[str, Any], request_id: str = "") -> None:
        self.client = grpc.InferenceServerClient(url)
        self.events: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client.start_stream(callback=lambda result, error: self.events.put((result, error)))
        tensors = [infer_input(name, value) for name, value in inputs.items()]
        self.client.async_stream_infer(model, tensors, request_id=request_id, enable_empty_final_response=True)

    def next(self) -> tuple[Any, Any]:
        """(result, error) of the next response; fails when none comes in time."""
        return self.events.get(timeout=ANSWER_S)

    def cancel(self) -> None:
        self.client.stop_stream(cancel_requests=True)

    def finish(self) -> Answer:
        answer = Answer()
        while True:
            result, error = self.next()
            if error is not None:
                answer.error = error.message()
                break
            response = result.get_response()
            answer.responses.append(result)
            text = result.as_numpy("text_output")
            if text is not None:
                answer.texts.append(text[0].decode())
            if response.parameters["triton_final_response"].bool_param:
                break
        self.client.close()
        return answer


@dataclass(frozen=True)
class Server:
    """Ways to talk to a running server."""

    address: Address

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.address.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.address.http_port}"

    def open(self, model: str = "ensemble", request_id: str = "", **inputs: Any) -> Stream:
        return Stream(self.grpc_url, model, inputs, request_id or str(uuid.uuid4()))

    def ask(self, model: str = "ensemble", request_id: str = "", **inputs: Any) -> Answer:
        return self.open(model, request_id, **inputs).finish()

    def info(self) -> dict[str, Any]:
        client = grpc.InferenceServerClient(self.grpc_url)
        answer = client.infer("engine_info", [_echo()])
        client.close()
        info: dict[str, Any] = json.loads(answer.as_numpy("info").reshape(-1)[0])
        return info

    def wait_for_stats(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 20.0) -> dict[str, Any]:
        """Polls the engine's statistics until they meet the condition; fails with the last ones."""
        deadline = time.monotonic() + timeout_s
        while True:
            stats: dict[str, Any] = self.info()["stats"]
            if condition(stats):
                return stats
            assert time.monotonic() < deadline, f"not reached in {timeout_s} s: {stats}"
            time.sleep(0.05)


def _echo() -> grpc.InferInput:
    tensor = grpc.InferInput("echo", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"x"]], np.object_))
    return tensor


def idle(stats: dict[str, Any]) -> bool:
    """Nothing runs, nothing waits, every block is free."""
    return bool(
        stats["active"] == stats["queued"] == stats["streams"] == 0
        and stats["kv_blocks_free"] == stats["kv_blocks_total"]
    )
