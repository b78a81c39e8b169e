"""A token's result never depends, not by one bit, on what else is in the batch or on how the prompt was cut."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.engine import Request, SamplingParams
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.batch import BatchBuilder
from mixtral_runtime.pytorch.block_pool import BlockPool
from mixtral_runtime.pytorch.model import MixtralModel

PROMPTS = [[(7 * i * i + 3 * n) % 160 for i in range(length)] for n, length in enumerate((75, 1, 16, 33, 130))]


@pytest.fixture(scope="module", params=["16bit", "int8"])
def stored(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return make_checkpoint(request.param)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def any_model(request: pytest.FixtureRequest, stored: Checkpoint) -> MixtralModel:
    return MixtralModel.load(stored, "cpu", request.param)


@torch.inference_mode()
def run_in_chunks(model: MixtralModel, prompts: list[list[int]], chunks: list[list[int]]) -> list[torch.Tensor]:
    """Logits of every prompt, [tokens, vocab]. chunks: for each step, how many tokens each prompt takes."""
    pool = BlockPool(sum(blocks_for(len(prompt)) for prompt in prompts))
    tables = [pool.allocate(blocks_for(len(prompt))) for prompt in prompts]
    cache = model.new_cache(pool.total)
    done = [0] * len(prompts)
    logits: list[list[torch.Tensor]] = [[] for _ in prompts]
    for step in chunks:
        builder = BatchBuilder()
        taking = [i for i, length in enumerate(step) if length and done[i] < len(prompts[i])]
        for i in taking:
            builder.add(prompts[i][done[i] : done[i] + step[i]], done[i], tables[i])
        batch = builder.build(model.device)
        rows = model.logits(model.forward(batch, cache))
        for i, span in zip(taking, batch.spans, strict=True):
            logits[i].append(rows[span.rows])
            done[i] = span.end
    return [torch.cat(parts) for parts in logits]


def test_decoding_gives_the_bits_of_prefilling(any_model: MixtralModel) -> None:
    prompt = PROMPTS[0]
    (decoded,) = run_in_chunks(any_model, [prompt], [[1]] * len(prompt))
    assert torch.equal(decoded, any_model.forward_logits(prompt))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 40), min_size=5, max_size=5).filter(any), max_size=12))
def test_any_chunking_in_any_batch_gives_the_same_bits(any_model: MixtralModel, chunks: list[list[int]]) -> None:
    together = run_in_chunks(any_model, PROMPTS, [*without_idle_steps(chunks), [200] * len(PROMPTS)])
    for prompt, logits in zip(PROMPTS, together, strict=True):
        assert torch.equal(logits, any_model.forward_logits(prompt))


def without_idle_steps(chunks: list[list[int]]) -> Iterator[list[int]]:
    """Steps in which some prompt still has tokens to take; the last token of each is left to the last step."""
    left = [len(prompt) - 1 for prompt in PROMPTS]
    for step in chunks:
        taken = [min(length, rest) for length, rest in zip(step, left, strict=True)]
        left = [rest - length for rest, length in zip(left, taken, strict=True)]
        if any(taken):
            yield taken


@pytest.mark.parametrize("threads", [2, 3])
def test_bits_do_not_depend_on_how_threads_share_a_large_step(
    make_checkpoint: Callable[..., Checkpoint], threads: int
) -> None:
    """Three threads split 300 rows of 1000 within a row; PyTorch computes the ends of a split differently."""
    checkpoint = make_checkpoint("16bit", num_hidden_layers=1, intermediate_size=1000, num_local_experts=2)
    model = MixtralModel.load(checkpoint, "cpu", torch.float32)
    prompt = [(11 * i * i + i) % 160 for i in range(301)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        (chunked,) = run_in_chunks(model, [prompt], [[25]] * 13)
        assert torch.equal(chunked, model.forward_logits(prompt))
    finally:
        torch.set_num_threads(before)


def requests() -> list[Request]:
    return [
        Request(
            prompt,
            max_tokens=5 + 9 * n,  # they leave one by one
            sampling=SamplingParams(
                temperature=0.0 if n == 0 else 0.9,
                top_p=0.95,
                repetition_penalty=1.1,
                presence_penalty=0.4 * n,
                frequency_penalty=0.5 if n % 2 else 0.0,
                seed=n,
            ),
            end_id=11,
            min_tokens=3 * n,
            bad_sequences=[[n], [5, 6 + n]],
            logit_bias={20 + n: 2.0, 30: -100.0} if n % 3 else {},
            return_log_probs=True,
            return_prompt_log_probs=True,
            top_log_probs=3,
        )
        for n, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize("max_num_tokens", [8, 50, 512])
def test_requests_get_the_same_tokens_and_log_probs_alone_and_together(
    make_engine: Any, collect: Any, max_num_tokens: int
) -> None:
    """Batch size 3: the last two join when others have left. 8 tokens a step: prompts are cut into many chunks."""
    engine = make_engine(max_batch_size=1)
    alone = []
    for request in requests():
        request_id = engine.submit(request)
        alone.append(collect(engine, request_id)[request_id])
    engine = make_engine(max_batch_size=3, max_num_tokens=max_num_tokens)
    ids = [engine.submit(request) for request in requests()]
    together = collect(engine, *ids)
    for request_id, expected in zip(ids, alone, strict=True):
        found = together[request_id]
        assert found.token_ids == expected.token_ids
        assert found.log_probs == expected.log_probs
        assert found.prompt_log_probs == expected.prompt_log_probs
        assert found.top_log_probs == expected.top_log_probs
