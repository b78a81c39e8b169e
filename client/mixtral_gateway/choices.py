"""Runs the generations of a request side by side."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from mixtral_client import AsyncClient, Chunk
from mixtral_gateway.jobs import Job

# Of an answer that is sent whole, so that fewer responses have to be read; a cancel is seen that many tokens later.
WHOLE_ANSWER_INTERVAL = 4


async def run_choices(client: AsyncClient, job: Job, request_id: str) -> AsyncGenerator[tuple[int, Chunk], None]:
    """Yields (choice, chunk) as they arrive; one gRPC stream for each choice. Closing it cancels all of them, and so
    does the failure of one, which is raised."""
    if job.choices == 1:
        async with contextlib.aclosing(_stream(client, job, 0, request_id)) as chunks:
            async for chunk in chunks:
                yield 0, chunk
        return
    queue: asyncio.Queue[tuple[int, Chunk] | Exception | None] = asyncio.Queue(2 * job.choices)
    tasks = [asyncio.create_task(_feed(queue, client, job, choice, request_id)) for choice in range(job.choices)]
    running = len(tasks)
    try:
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _stream(client: AsyncClient, job: Job, choice: int, request_id: str) -> AsyncGenerator[Chunk, None]:
    prompt = job.prompts[choice // job.n]
    options = job.options_of(choice)
    if not job.stream:
        options = replace(options, stream_interval=WHOLE_ANSWER_INTERVAL)
    suffix = f"-{choice}" if job.choices > 1 else ""
    return client.stream(
        prompt.text, messages=prompt.messages, input_ids=prompt.ids, options=options, request_id=request_id + suffix
    )


async def _feed(queue: asyncio.Queue[Any], client: AsyncClient, job: Job, choice: int, request_id: str) -> None:
    try:
        async with contextlib.aclosing(_stream(client, job, choice, request_id)) as chunks:
            async for chunk in chunks:
                await queue.put((choice, chunk))
        await queue.put(None)
    except Exception as error:
        await queue.put(error)
