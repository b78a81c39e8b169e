"""Turns the responses of one stream into chunks and takes the times; shared by the sync and the async client."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mixtral_client.errors import ProtocolError, parse_server_error
from mixtral_client.generation import Chunk, Usage
from mixtral_client.responses import Response, read_response


class ChunkAssembler:
    """One request's way from responses to chunks. Create it just before the request is sent: it starts the clock.

    The final flag may come on the last token's response or on an empty one, the finish reason earlier than either, and
    empty responses at any time. The chunks hide this: the last one has the finish reason and the usage.
    """

    def __init__(self, request_id: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self._request_id = request_id
        self._clock = clock
        self._sent = clock()
        self._first_token: float | None = None
        self._last_token: float | None = None
        self._num_input_tokens: int | None = None
        self._num_output_tokens: int | None = None
        self._num_first_tokens = 0  # of the response that brought the first token
        self._finish_reason: str | None = None
        self.connected = False  # whether anything has arrived
        self.finished = False  # whether the last chunk was made

    def push(self, message: Any) -> Chunk | None:
        """Takes a `ModelStreamInferResponse`; None for one that brings nothing, such as a heartbeat.

        Raises the server's error (a `ServerError`) if the message is one, ProtocolError if it cannot be decoded.
        """
        self.connected = True
        if message.error_message:
            raise parse_server_error(message.error_message)
        now = self._clock()
        response = read_response(message.infer_response)
        if response.tokens:
            if self._first_token is None:
                self._first_token = now
                self._num_first_tokens = response.num_output_tokens or 0
            self._last_token = now
        self._remember(response)
        chunk = Chunk(
            request_id=self._request_id,
            text=response.text,
            token_ids=response.token_ids,
            log_probs=response.log_probs,
            cum_log_prob=response.cum_log_prob,
            top_log_probs=response.top_log_probs,
            prompt_log_probs=response.prompt_log_probs,
        )
        if response.final:
            self.finished = True
            return replace(chunk, finish_reason=self._finish_reason, usage=self._usage(now))
        return chunk if response.tokens or response.prompt_log_probs else None

    def end(self) -> None:
        """The server closed the stream. Raises ProtocolError if that came before a final response."""
        if not self.finished:
            raise ProtocolError("the server ended the stream without a final response")

    def _remember(self, response: Response) -> None:
        self._finish_reason = response.finish_reason or self._finish_reason
        if response.num_input_tokens is not None:
            self._num_input_tokens = response.num_input_tokens
        if response.num_output_tokens is not None:
            self._num_output_tokens = (self._num_output_tokens or 0) + response.num_output_tokens

    def _usage(self, now: float) -> Usage:
        first, last = self._first_token, self._last_token
        tpot_s = None
        if first is not None and last is not None and self._num_output_tokens is not None:
            later_tokens = self._num_output_tokens - self._num_first_tokens
            tpot_s = (last - first) / later_tokens if later_tokens > 0 and last > first else None
        return Usage(
            num_input_tokens=self._num_input_tokens,
            num_output_tokens=self._num_output_tokens,
            ttft_s=None if first is None else first - self._sent,
            tpot_s=tpot_s,
            total_s=now - self._sent,
        )
