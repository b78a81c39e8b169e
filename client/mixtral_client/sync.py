"""The blocking client: one gRPC channel, one bidirectional stream per request."""

import threading
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
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
from mixtral_client.status import ServerStatus
from mixtral_client.tensors import (
    engine_info_request,
    generation_request,
    read_engine_info,
    read_token_ids,
    tokenize_request,
)
from mixtral_client.tls import TlsOptions


class Client:
    """Generates text on a server, blocking. Use it as a context manager or call `close`.

    A client may be used from several threads at once; each request is a stream of its own on the shared connection.
    It talks to Triton's streaming call directly, because `tritonclient`'s blocking client allows one stream per
    connection, and closing it waits for the whole generation.

    url: host:port of the server's gRPC port. idle_timeout_s: the longest silence of the server within a request, and
    the time limit of `status`. tls: None connects without encryption.
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
        self._channel = open_channel(grpc, url, tls)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; requests still running are cancelled."""
        self._channel.close()

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        input_ids: Sequence[int] | None = None,
        options: GenerationOptions | None = None,
        request_id: str | None = None,
    ) -> Generator[Chunk, None, None]:
        """Yields the generation as it arrives; the last chunk has the finish reason and the usage.

        The request is sent when the first chunk is asked for. Leaving the loop early, by `break`, an exception or
        Ctrl-C, cancels it on the server. An iterator kept in a variable lives on after a `break`: close it
        (`contextlib.closing`).

        prompt, messages (a conversation, through the model's chat template) or input_ids (a tokenised prompt): exactly
        one of them. request_id: appears in the server's log; a random UUID if not given.

        Raises InvalidArgument, Unavailable, Internal or another ServerError as the server says, ServerUnreachable if
        there is no connection or it breaks, IdleTimeout after `idle_timeout_s` without any response, ProtocolError for
        an answer that breaks the protocol.
        """
        request_id = request_id or str(uuid.uuid4())
        request = generation_request(prompt, messages, input_ids, options or GenerationOptions(), request_id)
        assembler = ChunkAssembler(request_id)
        call = self._stub.ModelStreamInfer(iter([request]))
        try:
            with _IdleWatch(call, self.idle_timeout_s) as watch:
                for message in watch.responses():
                    try:
                        chunk = assembler.push(message)
                    except ServerError:
                        watch.drain(CLOSE_TIMEOUT_S)
                        raise
                    if assembler.finished:
                        watch.drain(CLOSE_TIMEOUT_S)
                    if chunk is not None:
                        yield chunk
                    if assembler.finished:
                        return
            assembler.end()
        except grpc.RpcError as error:
            if watch.expired:
                raise IdleTimeout(idle_message(self.url, self.idle_timeout_s)) from None
            raise from_rpc_error(error, self.url, self.tls, connected=assembler.connected) from None
        finally:
            call.cancel()  # does nothing to a call that has ended

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        input_ids: Sequence[int] | None = None,
        options: GenerationOptions | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Waits for the whole generation. Parameters and errors as for `stream`."""
        return Result.join(
            self.stream(prompt, messages=messages, input_ids=input_ids, options=options, request_id=request_id)
        )

    def tokenize(self, text: str) -> list[int]:
        """The token ids that the server makes of a prompt, BOS included.

        Raises InvalidArgument for an empty text, ServerUnreachable without a connection, IdleTimeout without an answer,
        ProtocolError if the answer has no ids.
        """
        try:
            answer = self._stub.ModelInfer(tokenize_request(text), timeout=self.idle_timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.url, self.tls, connected=False) from None
        return read_token_ids(answer)

    def status(self) -> ServerStatus:
        """Asks whether the server is ready and, if so, for its manifest, limits and statistics.

        Raises ServerUnreachable without a connection, IdleTimeout without an answer, ServerError if the server has no
        `engine_info` model, ProtocolError if that answers nonsense.
        """
        try:
            ready = self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=self.idle_timeout_s).ready
            if not ready:
                return ServerStatus(self.url, ready=False)
            info = self._stub.ModelInfer(engine_info_request(), timeout=self.idle_timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.url, self.tls, connected=False) from None
        return ServerStatus.from_info(self.url, read_engine_info(info))


class _IdleWatch:
    """Cancels a call when one wait for its next response lasts too long.

    gRPC's blocking iterator has no time limit of its own. Only the waiting counts, not the time the caller takes over a
    chunk.
    """

    def __init__(self, call: Any, idle_timeout_s: float) -> None:
        self.expired = False
        self._call = call
        self._idle_timeout_s = idle_timeout_s
        self._deadline: float | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="mixtral-idle-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def responses(self) -> Iterator[Any]:
        while True:
            try:
                self._deadline = time.monotonic() + self._idle_timeout_s
                message = next(self._call)
            except StopIteration:
                return
            finally:
                self._deadline = None
            yield message

    def drain(self, timeout_s: float) -> None:
        """Waits until the server closes the finished or failed stream, at most about `timeout_s` seconds."""
        self._idle_timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        with self._changed:
            self._changed.notify()
        try:
            for _ in self._call:
                pass
        except grpc.RpcError:
            pass  # nothing more is to come, however the connection ends

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                # A deadline only ever moves later, except in `drain`, which notifies: so no notify for each response.
                deadline = self._deadline
                left = self._idle_timeout_s if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    self.expired = True
                    self._call.cancel()
                    return
                self._changed.wait(left)
