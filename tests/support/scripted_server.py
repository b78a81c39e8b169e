"""A double of the server: Triton's gRPC service over loopback, which answers by script.

Run as a program it serves one generation that never ends, for tests that kill it.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

OUTPUT_TYPES: dict[str, Any] = {
    "text_output": np.object_,
    "finish_reason": np.object_,
    "num_input_tokens": np.int32,
    "num_output_tokens": np.int32,
    "output_ids": np.int32,
    "output_log_probs": np.float32,
    "cum_log_probs": np.float32,
    "prompt_log_probs": np.float32,
    "top_token_ids": np.int32,
    "top_token_log_probs": np.float32,
    "info": np.object_,
    "INPUT_ID": np.int32,
    "vocabulary": np.object_,
    "special_ids": np.int32,
}


class Step:
    """One thing that a script does: answer, or wait (for ever: until the client goes)."""

    def __init__(self, response: Any = None, wait_s: float | None = 0.0) -> None:
        self.response = response
        self.wait_s = wait_s


def tensors(final: bool | None = None, **outputs: Any) -> Any:
    """A `ModelInferResponse` with these outputs."""
    response = service_pb2.ModelInferResponse(model_name="ensemble")
    for name, values in outputs.items():
        array = np.array(values, dtype=OUTPUT_TYPES[name])
        response.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        strings = OUTPUT_TYPES[name] is np.object_
        response.raw_output_contents.append(serialize_byte_tensor(array).item() if strings else array.tobytes())
    if final is not None:
        response.parameters["triton_final_response"].bool_param = final
    return response


def answer(text: str | None = None, finish: str | None = None, final: bool = False, **outputs: Any) -> Step:
    """One response of the ensemble; what is None is left out, as the server does."""
    if text is not None:
        outputs["text_output"] = [text.encode()]  # one-dimensional, as the server sends it
    if finish is not None:
        outputs |= {"finish_reason": [[finish.encode()]]}
    return Step(service_pb2.ModelStreamInferResponse(infer_response=tensors(final, **outputs)))


def heartbeat() -> Step:
    return answer()


def story(text: tuple[str, ...] = ("Once", " upon", " a time"), finish: str = "stop", **last: Any) -> list[Step]:
    """Each piece is one response of one token."""
    steps = [answer(piece, num_input_tokens=[[5]], num_output_tokens=[[1]]) for piece in text]
    return [*steps, answer("", finish, final=True, **last)]


def failure(text: str) -> Step:
    return Step(service_pb2.ModelStreamInferResponse(error_message=text))


def pause(seconds: float) -> Step:
    return Step(wait_s=seconds)


def hang() -> Step:
    return Step(wait_s=None)


def inputs_of(request: Any) -> dict[str, Any]:
    """The inputs of a `ModelInferRequest` as nested lists."""
    decoded = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        strings = tensor.datatype == "BYTES"
        array = deserialize_bytes_tensor(raw) if strings else np.frombuffer(raw, triton_to_np_dtype(tensor.datatype))
        decoded[tensor.name] = array.reshape(tensor.shape).tolist()
    return decoded


class ScriptedServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Plays the same script for every generation, or one made from its inputs, and records what clients did."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        """credentials: for TLS."""
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.cancelled = threading.Event()  # a client went away before the script's end
        self.ready = True
        self.info: object = {}
        self.input_names = ["text_input", "messages", "input_ids", "max_tokens"]  # of the metadata
        self.input_names += ["presence_penalty", "frequency_penalty"]
        self.vocabulary: list[bytes] = [b"<unk>", b"<s>", b"</s>"]  # the special tokens, and what a test adds
        self.tokenize: Callable[[str], list[int]] = lambda text: [1, *text.encode()]
        self._script: Callable[[dict[str, Any]], Sequence[Step]] = lambda inputs: ()
        self._pool = ThreadPoolExecutor(max_workers=8)
        self._server = grpc.server(self._pool)
        any_port = "127.0.0.1:0"
        if credentials is None:
            port = self._server.add_insecure_port(any_port)
        else:
            port = self._server.add_secure_port(any_port, credentials)
        self.url = f"127.0.0.1:{port}"
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self._server.start()

    def play(self, *script: Step) -> None:
        self._script = lambda inputs: script

    def play_by(self, script: Callable[[dict[str, Any]], Sequence[Step]]) -> None:
        """script: from a request's inputs."""
        self._script = script

    def stop(self) -> None:
        self._server.stop(grace=0).wait()
        self._pool.shutdown()

    def ModelStreamInfer(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Any]:
        request = next(request_iterator)
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        ended, played = threading.Event(), threading.Event()

        def end() -> None:
            if not played.is_set():
                self.cancelled.set()
            ended.set()

        if not context.add_callback(end):  # it is over already
            end()
        for step in self._script(inputs_of(request)):
            if step.response is not None:
                yield step.response
            elif ended.wait(step.wait_s):
                return
        played.set()

    def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self.ready)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        answer = service_pb2.ModelMetadataResponse(name=request.name)
        for name in self.input_names:
            answer.inputs.add(name=name)
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if request.model_name == "preprocessing":
            inputs = inputs_of(request)
            prompt = (inputs.get("QUERY") or inputs["MESSAGES"])[0][0]
            return tensors(INPUT_ID=[self.tokenize(prompt.decode())])
        if any(output.name == "vocabulary" for output in request.outputs):
            return tensors(vocabulary=[self.vocabulary], special_ids=[[0, 1, 2]])
        if isinstance(self.info, str):
            context.abort(grpc.StatusCode.NOT_FOUND, self.info)
        return tensors(info=[json.dumps(self.info).encode()])


if __name__ == "__main__":
    endless = ScriptedServer()
    endless.play(answer("Once"), hang())
    sys.stdout.write(endless.url + "\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(60)
