"""A step that is launched before the last one is collected, as on a GPU: nobody can tell from the answers."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from mixtral_runtime.engine import EngineLimits, FinishReason, Request, SamplingParams
from mixtral_runtime.pytorch.batch import BatchBuilder
from mixtral_runtime.pytorch.decode_graphs import DecodeGraphs, graph_sizes
from mixtral_runtime.pytorch.engine import PyTorchEngine
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.pytorch.sampler import Sampler, new_sampler
from mixtral_runtime.pytorch.scheduler import Work
from mixtral_runtime.pytorch.sequence import Sequence
from mixtral_runtime.pytorch.step import Step, StepResult, StepRunner

PATIENCE_S = 60.0
LIMITS = EngineLimits(max_batch_size=4, max_input_len=150, max_seq_len=192, max_num_tokens=48, max_queue_size=64)


def mixed_requests(model: MixtralModel) -> list[Request]:
    """Everything that reads the tokens before, or ends at one."""
    prompts = [[(7 * start + i) % 150 for i in range(length)] for start, length in enumerate((1, 40, 5, 90, 33, 64))]
    likely = int(model.forward_logits(prompts[1]).argmax(dim=-1)[-1])
    return [
        Request(prompts[0], 30),
        Request(prompts[1], 30, end_id=likely),
        Request(prompts[1], 1),
        Request(prompts[2], 25, sampling=SamplingParams(temperature=1.0, top_p=0.9, seed=3)),
        Request(prompts[2], 25, sampling=SamplingParams(temperature=1.0, top_k=20, seed=4, repetition_penalty=1.3)),
        Request(prompts[3], 40, return_log_probs=True, top_log_probs=3, return_prompt_log_probs=True),
        Request(prompts[4], 40, sampling=SamplingParams(frequency_penalty=0.7, presence_penalty=0.4)),
        Request(prompts[4], 40, bad_sequences=[[5, 6], [likely]], min_tokens=3, end_id=likely),
        Request(prompts[5], 60, stop_sequences=[[likely], [9, 9]]),
        Request(prompts[5], 70, streaming=False),
    ]


@pytest.mark.parametrize("kv_cache_tokens", [1024, 192], ids=["room-for-all", "some-give-way"])
def test_the_answers_are_the_same(model: MixtralModel, collect: Any, kv_cache_tokens: int) -> None:
    found = []
    for launch_ahead in (False, True):
        engine = PyTorchEngine(model, LIMITS, kv_cache_tokens, launch_ahead=launch_ahead)
        ids = [engine.submit(request) for request in mixed_requests(model)]
        answers = collect(engine, *ids)
        assert engine.stats().kv_blocks_free == engine.stats().kv_blocks_total
        assert (engine.stats().preemptions > 0) == (kv_cache_tokens == 192)
        engine.close()
        found.append([answers[one] for one in ids])
    for one, other in zip(*found, strict=True):
        assert one.token_ids == other.token_ids
        assert one.outputs[-1].finish_reason == other.outputs[-1].finish_reason
        assert (one.log_probs, one.top_log_probs) == (other.log_probs, other.top_log_probs)
        assert [output.prompt_log_probs for output in one.outputs if output.prompt_log_probs] == [
            output.prompt_log_probs for output in other.outputs if output.prompt_log_probs
        ]


def test_the_next_step_is_launched_before_the_tokens_are_known(
    model: MixtralModel, collect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class Noted(StepRunner):
        def launch(self, work: list[Work], before: Step | None = None) -> Step:
            order.append("launch")
            return super().launch(work, before)

        def collect(self, step: Step) -> list[StepResult]:
            order.append("collect")
            return super().collect(step)

    monkeypatch.setattr("mixtral_runtime.pytorch.engine.StepRunner", Noted)
    engine = PyTorchEngine(model, LIMITS, launch_ahead=True)
    request = engine.submit(Request([1, 2, 3], 4))
    assert len(collect(engine, request)[request].token_ids) == 4
    engine.close()
    assert order == ["launch", *["launch", "collect"] * 3, "collect"]


class FailsOnce(StepRunner):
    """Whose device reports an error that belongs to a step launched earlier, once."""

    failing = True

    def collect(self, step: Step) -> list[StepResult]:
        if self.failing and any(len(one.sequence.tokens) > 12 for one in step.work):
            FailsOnce.failing = False
            raise RuntimeError("an illegal address, seen late")
        return super().collect(step)


def test_a_step_that_failed_on_the_device_is_made_again_with_what_followed_it(
    model: MixtralModel, collect: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [Request([3, 1], 30), Request([4] * 5, 30, sampling=SamplingParams(repetition_penalty=1.5))]
    engine = PyTorchEngine(model, LIMITS, launch_ahead=False)
    ids = [engine.submit(request) for request in requests]
    expected = collect(engine, *ids)
    engine.close()
    monkeypatch.setattr("mixtral_runtime.pytorch.engine.StepRunner", FailsOnce)
    caplog.set_level(logging.CRITICAL, logger="mixtral_runtime")
    engine = PyTorchEngine(model, LIMITS, launch_ahead=True)
    again = [engine.submit(request) for request in requests]
    found = collect(engine, *again)
    assert not FailsOnce.failing
    assert [found[one].token_ids for one in again] == [expected[one].token_ids for one in ids]
    assert engine.stats().kv_blocks_free == engine.stats().kv_blocks_total
    engine.close()


def test_one_that_ended_at_its_last_token_gets_no_step_in_vain(model: MixtralModel, collect: Any) -> None:
    engine = PyTorchEngine(model, LIMITS, launch_ahead=True)
    request = engine.submit(Request([1, 2, 3], 5))
    assert collect(engine, request)[request].outputs[-1].finish_reason is FinishReason.LENGTH
    assert engine.stats().steps == 5
    engine.close()


def test_every_batch_has_a_graph_with_room() -> None:
    for batch in (1, 7, 16, 17, 64, 100, 256, 1000):
        sizes = graph_sizes(batch)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] >= batch > (sizes[-2] if len(sizes) > 1 else 0)
    assert graph_sizes(1024)[:17] == [*range(1, 17), 24]
    assert len(graph_sizes(1024)) < 40


def record_by_calling(function: Any) -> tuple[Any, Tensor]:
    """What stands in for a CUDA graph: the same launches from the host, into the same tensor."""
    result: Tensor = function()
    return lambda: result.copy_(function()), result


@torch.inference_mode()
def test_a_recorded_step_gives_the_logits_of_a_plain_one(model: MixtralModel) -> None:
    """Rows of nobody beside them, or not; with tokens that only the device knows, or not."""
    blocks = 24
    plain, cache = model.new_cache(blocks), model.new_cache(blocks + 1)
    graphs = DecodeGraphs(model, cache, max_batch_size=20, max_seq_len=2 * BLOCK_SIZE, record=record_by_calling)
    lengths = list(range(3, 23))
    tables = [[i] for i in range(len(lengths))]
    prefill = BatchBuilder()
    for length, table in zip(lengths, tables, strict=True):
        prefill.add([(3 * length + i) % 150 for i in range(length)], 0, table)
    for one in (plain, cache):
        model.forward(prefill.build(model.device), one)
    sampled = torch.tensor([20, 21, 22])
    for rows in (20, 1, 18, 3):  # 24 rows recorded, 1, 24, 3
        decode = BatchBuilder()
        for row in range(rows):
            if row < len(sampled):
                decode.add_sampled(row, lengths[row], tables[row])
            else:
                decode.add([row], lengths[row], tables[row])
        host = decode.finish()
        expected = model.logits(model.forward(host.to(model.device, sampled), plain))
        assert torch.equal(graphs.run(host, sampled), expected)
    assert not torch.equal(cache.storage[:, :, -1], torch.zeros_like(cache.storage[:, :, -1])), "nobody wrote nowhere"
    assert torch.equal(cache.storage[:, :, :blocks], plain.storage), "a row of nobody wrote into another's block"


def test_warming_up_leaves_nothing_that_a_request_sees(
    model: MixtralModel, collect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request([5, 6, 7], 20, sampling=SamplingParams(temperature=1.0, seed=1))
    engine = PyTorchEngine(model, LIMITS)
    expected = collect(engine, number := engine.submit(request))[number].token_ids
    engine.close()
    steps: list[int] = []
    forward = MixtralModel.forward

    def counted(self: MixtralModel, batch: Any, cache: Any) -> Tensor:
        steps.append(len(batch.token_ids))
        return forward(self, batch, cache)

    class Warm(StepRunner):
        def __init__(self, model: MixtralModel, cache: Any, sampler: Sampler, graphs: Any = None) -> None:
            super().__init__(model, cache, sampler, graphs)
            self.warm_up(LIMITS)

    monkeypatch.setattr(MixtralModel, "forward", counted)
    monkeypatch.setattr("mixtral_runtime.pytorch.engine.StepRunner", Warm)
    engine = PyTorchEngine(model, LIMITS)
    assert steps == [2, 3, 4, 6, 8, 12, 16, 24, 32, 48]
    again = collect(engine, number := engine.submit(request))[number].token_ids
    assert again == expected
    engine.close()


def test_a_prompt_s_single_token_is_no_recorded_step(model: MixtralModel) -> None:
    """Beside a sequence that decodes, a chunk of one token whose prompt goes on: nothing is sampled after it."""
    found = []
    for recorded in (False, True):
        cache = model.new_cache(9)
        graphs = DecodeGraphs(model, cache, 2, 2 * BLOCK_SIZE, record_by_calling) if recorded else None
        runner = StepRunner(model, cache, new_sampler(2, model.config.vocab_size, model.device), graphs)
        chunk = Sequence(1, Request([8, 9, 10], 4, return_prompt_log_probs=True), None, block_ids=[0])
        decoding = Sequence(2, Request([5], 4), None, block_ids=[1])
        results = runner.run([Work.of(chunk, 1), Work.of(decoding, 1)])
        assert results[0].error is None
        assert results[0].token is None
        assert len(results[0].prompt_log_probs) == 1
        found.append((results[0].prompt_log_probs, results[1].token))
    assert found[0] == found[1]
