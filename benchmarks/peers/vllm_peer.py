"""vLLM on the model's own 16-bit weights, where it is installed and there is a GPU.

Written after vLLM's documented asynchronous engine; it has not been run by this project's tests.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from peers.interface import PeerUnavailable, Prompt, Settings, Trace


class Vllm:
    def __init__(self, settings: Settings) -> None:
        if not torch.cuda.is_available():
            raise PeerUnavailable("vLLM is measured on a GPU only, and there is none here")
        from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams

        arguments = AsyncEngineArgs(
            model=str(settings.model),
            max_num_seqs=settings.max_sequences,
            max_model_len=settings.max_tokens,
            enable_prefix_caching=False,
        )
        self._sampling = SamplingParams
        self._loop = asyncio.new_event_loop()
        self._engine = self._loop.run_until_complete(_start(AsyncLLMEngine, arguments))

    def describe(self) -> dict[str, Any]:
        return {"versions": {name: version(name) for name in ("vllm", "torch")}, "weights": "the model's own 16 bits"}

    def generate(self, prompts: Sequence[Prompt], output_tokens: int) -> Trace:
        return self._loop.run_until_complete(self._generate(prompts, output_tokens))

    async def _generate(self, prompts: Sequence[Prompt], output_tokens: int) -> Trace:
        sampling = self._sampling(temperature=0, max_tokens=output_tokens, min_tokens=output_tokens, ignore_eos=True)
        trace = Trace.start(time.perf_counter(), len(prompts))

        async def one(sequence: int, prompt: Prompt) -> None:
            inputs = {"prompt_token_ids": list(prompt)}
            async for output in self._engine.generate(inputs, sampling, str(uuid.uuid4())):
                known = len(trace.tokens[sequence])  # its outputs hold all tokens so far
                trace.add(sequence, list(output.outputs[0].token_ids[known:]), time.perf_counter())

        async with asyncio.TaskGroup() as group:
            for sequence, prompt in enumerate(prompts):
                group.create_task(one(sequence, prompt))
        return trace

    def close(self) -> None:
        self._engine.shutdown()
        self._loop.close()


async def _start(engine: Any, arguments: Any) -> Any:
    return engine.from_engine_args(arguments)


def open_peer(settings: Settings) -> Vllm:
    return Vllm(settings)
