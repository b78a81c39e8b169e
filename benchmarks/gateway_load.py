"""N streams at once, straight to Triton or through the gateway, and when each chunk of them arrived."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import count

import uvloop
from synthetic_tokens import END_TOKEN, FIRST_TOKEN

from mixtral_client import AsyncClient, GenerationOptions

_WORDS = END_TOKEN - FIRST_TOKEN
_CHUNK = b'"finish_reason":'  # once in each event that brings text


@dataclass(frozen=True, slots=True)
class Stream:
    """sent_ns, chunks_ns: on the monotonic clock."""

    prompt: list[int]
    sent_ns: int
    chunks_ns: list[int]


One = Callable[[list[int], int], Awaitable[Stream]]  # prompt, tokens


def prompts() -> Iterator[list[int]]:
    """Each another one, by which the engine's record is found."""
    for number in count():
        yield [1, FIRST_TOKEN + number // _WORDS, FIRST_TOKEN + number % _WORDS]


def direct(client: AsyncClient) -> One:
    async def one(prompt: list[int], tokens: int) -> Stream:
        stream = Stream(prompt, time.monotonic_ns(), [])
        options = GenerationOptions(max_tokens=tokens, ignore_eos=True)
        usage = None
        async for chunk in client.stream(input_ids=prompt, options=options):
            stream.chunks_ns.append(time.monotonic_ns())
            usage = chunk.usage
        assert usage is not None
        assert usage.num_output_tokens == tokens
        return stream

    return one


def through(port: int) -> One:
    """A plain reader of the events: an OpenAI client would cost more than the gateway."""

    async def one(prompt: list[int], tokens: int) -> Stream:
        body = {
            "model": "mixtral", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        content = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        stream, tail = Stream(prompt, time.monotonic_ns(), []), b""
        writer.write(f"{head}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        while part := await reader.read(65536):
            seen = tail[1 - len(_CHUNK) :] + part  # a chunk's mark may be cut in two
            stream.chunks_ns.extend([time.monotonic_ns()] * seen.count(_CHUNK))
            tail = (tail + part)[-1000:]
        writer.close()
        counted = re.search(rb'"completion_tokens":(\d+)', tail)
        assert counted is not None, tail
        assert int(counted[1]) == tokens
        return stream

    return one


def run(triton: str, port: int | None, prompts: list[list[int]], tokens: int) -> list[Stream]:
    """All at once, or after one another when there is one prompt at a time. port: the gateway's, None for direct."""

    async def inside() -> list[Stream]:
        async with AsyncClient(triton) as client:
            await client.generate(input_ids=[1, FIRST_TOKEN], options=GenerationOptions(max_tokens=2))  # connects
            one = direct(client) if port is None else through(port)
            return await asyncio.gather(*(one(prompt, tokens) for prompt in prompts))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(inside())
