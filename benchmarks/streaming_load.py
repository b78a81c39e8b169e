"""N streams at once against one server, and when each token arrived. One gRPC call per stream, as real clients have it.

The measuring process shares the processors with what it measures, so it does next to nothing while a load runs: the
HTTP/2 of our own client, connected beforehand, and of each response only its time. The responses are read afterwards.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np
import numpy.typing as npt
import uvloop
from tritonclient.grpc import service_pb2

from mixtral_client.http2_channel import Http2Channel

CONNECTIONS = 4
SILENCE_S = 60.0  # of a stream; then something has died
METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
COUNTS = ("num_output_tokens", "sequence_length")  # outputs that say how many tokens a response has


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """One stream. sent_ns: when it was asked, on the monotonic clock. times_ns, tokens: of each response."""

    sent_ns: int
    times_ns: list[int]
    tokens: list[int]

    def per_token_ns(self) -> npt.NDArray[np.int64]:
        """[tokens] when each token was there."""
        return np.repeat(np.array(self.times_ns, np.int64), self.tokens)


def ensemble_request(prompt: Prompt, max_tokens: int, counted: bool = True) -> service_pb2.ModelInferRequest:
    """counted: with the number of tokens of each response; else the text alone."""
    if not counted:
        return _text_request(prompt, max_tokens, ("stream",), ("text_output",))
    return _text_request(
        prompt, max_tokens, ("stream", "return_num_output_tokens"), ("text_output", "num_output_tokens")
    )


def plain_request(prompt: Prompt, max_tokens: int, counted: bool = True) -> service_pb2.ModelInferRequest:
    """For the plain ensemble, whose tokens are counted by `sequence_length`."""
    return _text_request(prompt, max_tokens, (), ("text_output", "sequence_length") if counted else ("text_output",))


def nvidia_request(prompt: Prompt, max_tokens: int, counted: bool = False) -> service_pb2.ModelInferRequest:
    """For NVIDIA's ensemble, which has no count of the tokens of a response; with the plain engine model it is one."""
    return _text_request(prompt, max_tokens, ("stream",), ("text_output",))


def _text_request(
    prompt: Prompt, max_tokens: int, flags: Sequence[str], outputs: Sequence[str]
) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="ensemble")
    text = prompt.text.encode()
    _add(request, "text_input", "BYTES", [1, 1], len(text).to_bytes(4, "little") + text)
    _add(request, "max_tokens", "INT32", [1, 1], np.int32(max_tokens).tobytes())
    for name in flags:
        _add(request, name, "BOOL", [1, 1], b"\1")
    for name in outputs:
        request.outputs.add().name = name
    return request


def engine_request(prompt: Prompt, max_tokens: int, counted: bool = True) -> service_pb2.ModelInferRequest:
    """For the engine model itself; always counted."""
    request = service_pb2.ModelInferRequest(model_name="tensorrt_llm")
    _add(request, "input_ids", "INT32", [1, len(prompt.ids)], np.array(prompt.ids, np.int32).tobytes())
    _add(request, "input_lengths", "INT32", [1, 1], np.int32(len(prompt.ids)).tobytes())
    _add(request, "request_output_len", "INT32", [1, 1], np.int32(max_tokens).tobytes())
    for name in ("streaming", "ignore_eos"):
        _add(request, name, "BOOL", [1, 1], b"\1")
    for name in ("output_ids", "sequence_length"):
        request.outputs.add().name = name
    return request


def run_streams(port: int, requests: Sequence[service_pb2.ModelInferRequest]) -> list[Arrivals]:
    """All at once; returns when the last one ended. Raises RuntimeError when one fails."""
    raw = uvloop.run(_run_streams(port, [request.SerializeToString() for request in requests]))
    return [_arrivals(request, *stream) for request, stream in zip(requests, raw, strict=True)]


async def _run_streams(port: int, requests: Sequence[bytes]) -> list[tuple[int, list[int], list[bytes]]]:
    channels = [Http2Channel(f"127.0.0.1:{port}", METHOD, bytes, bytes) for _ in range(CONNECTIONS)]
    try:
        for channel in channels:
            await channel.connect()
        return await asyncio.gather(*[_run(channels[i % CONNECTIONS], request) for i, request in enumerate(requests)])
    except TimeoutError as error:
        raise RuntimeError(f"a stream was silent for {SILENCE_S:g} s") from error
    except grpc.RpcError as error:
        raise RuntimeError(error.details()) from error
    finally:
        for channel in channels:
            await channel.close()


async def _run(channel: Http2Channel, request: bytes) -> tuple[int, list[int], list[bytes]]:
    """When it was asked, and the times and bytes of the responses."""
    times: list[int] = []
    responses: list[bytes] = []
    loop = asyncio.get_running_loop()
    sent = time.monotonic_ns()
    call = channel(request)
    async with asyncio.timeout(SILENCE_S) as silence:
        while (response := await call.read()) is not grpc.aio.EOF:
            times.append(time.monotonic_ns())
            responses.append(response)
            silence.reschedule(loop.time() + SILENCE_S)
    return sent, times, responses


def _arrivals(
    request: service_pb2.ModelInferRequest, sent_ns: int, times: Sequence[int], responses: Sequence[bytes]
) -> Arrivals:
    arrivals = Arrivals(sent_ns, [], [])
    counted = any(output.name in COUNTS for output in request.outputs)
    for now, packed in zip(times, responses, strict=True):
        answer = service_pb2.ModelStreamInferResponse.FromString(packed)
        if answer.error_message:
            raise RuntimeError(answer.error_message)
        response = answer.infer_response
        if count := _tokens(response) if counted else min(len(response.outputs), 1):
            arrivals.times_ns.append(now)
            arrivals.tokens.append(count)
    return arrivals


def _tokens(response: service_pb2.ModelInferResponse) -> int:
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name in COUNTS:
            return int.from_bytes(raw, "little")
    return 0


def _add(request: service_pb2.ModelInferRequest, name: str, datatype: str, shape: list[int], raw: bytes) -> None:
    tensor = request.inputs.add()
    tensor.name, tensor.datatype = name, datatype
    tensor.shape.extend(shape)
    request.raw_input_contents.append(raw)
