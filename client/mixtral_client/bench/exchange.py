"""Sends one request and takes the times of its responses, as cheaply as Python allows.

It reads only the counts and the end from a response. The text is asked for, since a real client wants it and making it
is a part of the server's work, but it is not decoded: decoding would measure the load generator.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from mixtral_client.bench.result import INTERRUPTED, Failure
from mixtral_client.connection import CLOSE_TIMEOUT_S, DEFAULT_IDLE_TIMEOUT_S, DEFAULT_URL, from_rpc_error
from mixtral_client.errors import (
    IdleTimeout,
    MixtralClientError,
    ProtocolError,
    ServerError,
    ServerUnreachable,
    parse_server_error,
)
from mixtral_client.tls import TlsOptions

UNREACHABLE = "UNREACHABLE"
IDLE_TIMEOUT = "IDLE_TIMEOUT"
_COMPLETE = ("stop", "length")


@dataclass(frozen=True, slots=True)
class Target:
    """The server under load; fields as for `Client`."""

    url: str = DEFAULT_URL
    idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S
    tls: TlsOptions | None = None


@dataclass(slots=True, eq=False)
class Exchange:
    """One request under way; all times are the clock's. `cut_off` is set by whoever cancels the call, with the
    reason."""

    target: Target
    clock: Callable[[], float]
    sent: float = 0.0
    heard: float = 0.0  # when the server last sent anything, or `sent`
    ended: float = 0.0
    responses: list[tuple[float, int]] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    error: Failure | None = None
    cut_off: Failure | None = None
    call: Any = None

    async def run(self, stub: Any, request: Any) -> None:
        """Sends the request and reads its responses to the end. Never raises for what the server or the network does:
        that is in `error` afterwards."""
        self.sent = self.heard = self.clock()
        self.call = stub.ModelStreamInfer(iter([request]))
        try:
            await self._read()
        except asyncio.CancelledError:
            if self.cut_off is None:
                raise
            if not self.ended:  # else only the server's closing of the stream was cut off
                self.error = self.cut_off
        except grpc.aio.AioRpcError as error:
            self.error = failure(
                from_rpc_error(error, self.target.url, self.target.tls, connected=self.heard > self.sent)
            )
        except MixtralClientError as error:
            self.error = failure(error)
        finally:
            if not self.ended:
                self.ended = self.clock()
            self.call.cancel()  # does nothing to a call that has ended
        if self.error is None and self.finish_reason not in _COMPLETE:
            kind = (self.finish_reason or "protocol").upper()
            self.error = Failure(kind, f"the generation ended with the finish reason {self.finish_reason}")

    def cut(self, reason: Failure) -> None:
        """Ends the exchange early."""
        self.cut_off = reason
        if self.call is not None:
            self.call.cancel()

    async def _read(self) -> None:
        read = self.call.read
        while (message := await read()) is not grpc.aio.EOF:
            now = self.heard = self.clock()
            if message.error_message:
                await self._drain()
                raise parse_server_error(message.error_message)
            response = message.infer_response
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
                name = output.name
                if name == "num_output_tokens":
                    tokens = int.from_bytes(raw[:4], "little")
                    if tokens:
                        self.responses.append((now, tokens))
                        self.output_tokens += tokens
                elif name == "num_input_tokens":
                    self.input_tokens = int.from_bytes(raw[:4], "little")
                elif name == "finish_reason":
                    # A BYTES tensor of one element: its length in four bytes, then itself.
                    self.finish_reason = raw[4:].decode("utf-8", "replace") or self.finish_reason
            # Asking for a missing key would make it, so its presence is asked first.
            parameters = response.parameters
            if "triton_final_response" in parameters and parameters["triton_final_response"].bool_param:
                self.ended = now
                await self._drain()
                return
        raise ProtocolError("the server ended the stream without a final response")

    async def _drain(self) -> None:
        """The request is complete or failed; the worker goes on when the server has closed the stream."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
        except (TimeoutError, grpc.aio.AioRpcError):
            pass


def failure(error: MixtralClientError) -> Failure:
    """The error as the result file has it."""
    if isinstance(error, ServerError):
        kind = error.code
    elif isinstance(error, ServerUnreachable):
        kind = UNREACHABLE
    elif isinstance(error, IdleTimeout):
        kind = IDLE_TIMEOUT
    else:
        kind = "PROTOCOL"
    return Failure(kind, str(error))


def interrupted() -> Failure:
    return Failure(INTERRUPTED, "the run was stopped while this request was running")
