"""The asyncio client: the same methods as the blocking one."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mixtral_client.assembly import ChunkAssembler
from mixtral_client.connection import (
    CLOSE_TIMEOUT_S,
    DEFAULT_IDLE_TIMEOUT_S,
    DEFAULT_URL,
    from_rpc_error,
    idle_message,
    open_channel,
)
from mixtral_client.errors import IdleTimeout, ServerError
from mixtral_client.generation import Chunk, GenerationOptions, Message, Result
from mixtral_client.http2_channel import Http2Channel
from mixtral_client.idle_timer import IdleTimer
from mixtral_client.status import ServerStatus
from mixtral_client.tensors import (
    ENSEMBLE,
    engine_info_request,
    generation_request,
    read_engine_info,
    read_token_ids,
    read_vocabulary,
    tokenize_request,
    vocabulary_request,
)
from mixtral_client.tls import TlsOptions


class AsyncClient:
    """Generates text on a server, for asyncio. Make it inside a running event loop, and use it there only, as an async
    context manager or with `close`.

    Any number of requests may run at once; each is a stream of its own on the shared connection. url,
    idle_timeout_s and tls as for `Client`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S,
        tls: TlsOptions | None = None,
    ) -> None:
        """Raises InvalidArgument when a file of `tls` cannot be used."""
        self.url = url
        self.idle_timeout_s = idle_timeout_s
        self.tls = tls
        self._channel = open_channel(grpc.aio, url, tls)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._generate: Any
        path = "/inference.GRPCInferenceService/ModelStreamInfer"
        serialize = service_pb2.ModelInferRequest.SerializeToString
        deserialize = service_pb2.ModelStreamInferResponse.FromString
        if tls is None:
            self._generate = Http2Channel(url, path, serialize, deserialize)
        else:
            # To the server it is the same whether its client could send more than one request. To gRPC's Python it is
            # not: this way a request is sent in one operation instead of three, with a task less.
            self._generate = self._channel.unary_stream(path, serialize, deserialize)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; requests still running are cancelled."""
        if isinstance(self._generate, Http2Channel):
            await self._generate.close()
        await self._channel.close()

    async def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        input_ids: Sequence[int] | None = None,
        options: GenerationOptions | None = None,
        request_id: str | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Yields the generation as it arrives; parameters, chunks and errors as for `Client.stream`.

        Cancelling the task cancels the request on the server. After a `break` asyncio closes the generator in its own
        time; `contextlib.aclosing` cancels the request at once.
        """
        request_id = request_id or str(uuid.uuid4())
        request = generation_request(prompt, messages, input_ids, options or GenerationOptions(), request_id)
        assembler = ChunkAssembler(request_id)
        call = self._generate(request)
        idle = IdleTimer(self.idle_timeout_s, call.cancel)  # a read of a call cancelled here raises CancelledError
        try:
            while True:
                idle.begin()
                message = await call.read()
                idle.end()
                if message is grpc.aio.EOF:
                    break
                chunk = assembler.push(message)
                if assembler.finished:
                    await _drain(call)
                if chunk is not None:
                    yield chunk
                if assembler.finished:
                    return
            assembler.end()
        except ServerError:
            await _drain(call)
            raise
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.url, self.tls, connected=assembler.connected) from None
        except asyncio.CancelledError:
            if idle.expired and not _cancelling():
                raise IdleTimeout(idle_message(self.url, self.idle_timeout_s)) from None
            raise
        finally:
            idle.close()
            call.cancel()  # does nothing to a call that has ended

    async def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        input_ids: Sequence[int] | None = None,
        options: GenerationOptions | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Waits for the whole generation. Parameters and errors as for `Client.stream`."""
        chunks = self.stream(prompt, messages=messages, input_ids=input_ids, options=options, request_id=request_id)
        async with contextlib.aclosing(chunks):
            return Result.join([chunk async for chunk in chunks])

    async def tokenize(self, text: str | None = None, *, messages: Sequence[Message] | None = None) -> list[int]:
        """As `Client.tokenize`; of a chat when messages are given instead."""
        return read_token_ids(await self._infer(tokenize_request(text, messages)))

    async def vocabulary(self) -> tuple[list[bytes], frozenset[int]]:
        """Each token's bytes by its id, and the ids of the special tokens, whose bytes are their names.

        Raises ServerError when the server is too old to tell."""
        return read_vocabulary(await self._infer(vocabulary_request()))

    async def input_names(self) -> frozenset[str]:
        """The inputs that the server's ensemble has."""
        try:
            request = service_pb2.ModelMetadataRequest(name=ENSEMBLE)
            metadata = await self._stub.ModelMetadata(request, timeout=self.idle_timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.url, self.tls, connected=False) from None
        return frozenset(tensor.name for tensor in metadata.inputs)

    async def status(self) -> ServerStatus:
        """As `Client.status`."""
        try:
            ready = await self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=self.idle_timeout_s)
            if not ready.ready:
                return ServerStatus(self.url, ready=False)
            info = await self._stub.ModelInfer(engine_info_request(), timeout=self.idle_timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.url, self.tls, connected=False) from None
        return ServerStatus.from_info(self.url, read_engine_info(info))

    async def _infer(self, request: Any) -> Any:
        try:
            return await self._stub.ModelInfer(request, timeout=self.idle_timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.url, self.tls, connected=False) from None


def _cancelling() -> bool:
    """Whether somebody cancels the task that runs this."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _drain(call: Any) -> None:
    """Waits until the server closes the finished or failed stream: nothing more is to come, however it ends."""
    with contextlib.suppress(TimeoutError, grpc.RpcError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            while await call.read() is not grpc.aio.EOF:
                pass
