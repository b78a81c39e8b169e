"""The benchmark for GPUs, run in miniature on the CPU: every part of it, its file, its page and its picture."""

import json
import random
import time
from pathlib import Path
from typing import Any

import gpu
import gpu_tables
import pytest
import torch
from gpu_loads import LoadFailed, random_prompts, run_load
from gpu_model import MINIATURE, RandomCheckpoint, config_of, random_model
from gpu_peer import Peer, layer_step, load_layer
from gpu_record import OutOfTime
from gpu_sizes import FULL, PRECISIONS, SMALL, Load

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.pytorch.engine import PyTorchEngine
from mixtral_runtime.pytorch.model import MixtralModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    assert gpu.main(["--miniature", "--results", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def report(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results / "gpu.json").read_text())
    return found


def test_every_part_is_run_to_its_end(report: dict[str, Any]) -> None:
    assert report["complete"]
    assert report["settings"]["miniature"]
    assert [part for part in report["parts"] if part["error"]] == []
    assert "left_out" not in report


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_measured_through_the_engine_and_kernel_by_kernel(
    report: dict[str, Any], precision: str
) -> None:
    found = {(one["batch"], one["input"], one["output"]) for one in report["loads"] if one["precision"] == precision}
    assert found == {(load.batch, load.input, load.output) for load in SMALL.loads[precision]}
    kernels = {one["kernel"] for one in report["kernels"] if one["precision"] == precision}
    assert kernels == {"qkv", "dense", "experts", "lm_head", "add_norm", "add_norm_route"}
    assert {one["tokens"] for one in report["kernels"]} == set(SMALL.matrix_tokens)
    assert [one["tokens"] for one in report["prefill"] if one["precision"] == precision] == list(SMALL.prefill)
    assert [(one["batch"], one["context"]) for one in report["steps"] if one["precision"] == precision] == list(
        SMALL.steps
    )


def test_attention_is_measured_with_both_caches_and_the_peer_at_batch_1(report: dict[str, Any]) -> None:
    cases = [(one["kv_cache"], one["batch"], one["context"], one["query"]) for one in report["attention"]]
    assert cases == [(kv_cache, *case) for kv_cache in ("16bit", "fp8") for case in SMALL.attention]
    assert [(one["batch"], one["compiled"]) for one in report["peers"]] == [(1, False)]


def test_one_token_needs_its_two_experts_and_many_need_all(report: dict[str, Any]) -> None:
    for met in report["experts_met"].values():
        assert met["1"] == 2
        assert 2 < met["2"] < met["8"] < met["64"] == 8


def test_the_results_become_a_chapter_and_a_picture(results: Path, report: dict[str, Any]) -> None:
    text = gpu_tables.chapter(report)
    assert "| 24 / 6 | int8 | 1 |" in text
    assert "failed" not in text
    assert {path.name for path in results.iterdir()} == {"gpu.json", "gpu.png", "gpu.svg"}


def test_without_a_gpu_the_real_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 1
    assert "PyTorch sees no CUDA GPU here" in capsys.readouterr().err


def test_parts_and_precisions_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--miniature", "--precision", "awq", "--part", "steps", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {one["precision"] for one in report["steps"]} == {"awq"}
    assert not {"loads", "kernels", "attention", "peers"} & set(report)


def test_out_of_time_is_no_failure_and_says_what_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--miniature", "--seconds", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "int8: weights" in {one["what"] for one in report["left_out"]}
    assert "int8: weights: left out" in gpu_tables.chapter(report)


def test_when_a_kernel_spoils_the_device_another_process_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Replaced(Exception):
        """The process, by another program."""

    def replace_process(program: str, arguments: list[str]) -> None:
        raise Replaced(arguments[2:])

    monkeypatch.setattr("os.execv", replace_process)
    monkeypatch.setattr(gpu.Benchmark, "_answers", lambda self: False)
    with pytest.raises(Replaced) as replaced:
        gpu.main(["--miniature", "--precision", "int8", "--part", "attention", "steps", "--results", str(tmp_path)])
    assert "complete" in (tmp_path / "gpu.json").read_text()
    monkeypatch.setattr(gpu.Benchmark, "_answers", lambda self: True)
    assert gpu.main(replaced.value.args[0]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["complete"]
    assert {"ceilings", "attention", "steps"} <= set(report)  # the first of another process than the rest


def test_the_real_sizes_are_the_published_model_s_and_cover_the_batches() -> None:
    assert (FULL.shape.hidden_size, FULL.shape.intermediate_size, FULL.shape.num_hidden_layers) == (4096, 14336, 32)
    for precision in ("int8", "fp8", "awq"):
        loads = FULL.loads[precision]
        assert {load.batch for load in loads if load.input == 512} == {1, 8, 32, 128}
        assert len(set(loads)) == len(loads)
    assert Load(1024, 128, 128) in FULL.loads["fp8"]


@pytest.fixture(scope="module")
def engine() -> Any:
    made = PyTorchEngine(random_model(config_of(MINIATURE, "int8"), CPU), EngineLimits(4, 100, 128, 64))
    yield made
    made.close()


def test_a_load_counts_every_token(engine: PyTorchEngine) -> None:
    before = engine.stats().output_tokens
    figures = run_load(engine, random_prompts(3, 10, 320, random.Random(1)), 8, time.monotonic() + 60)
    assert engine.stats().output_tokens - before == 24
    assert figures.tokens_per_s == pytest.approx(24 / figures.seconds)
    assert 0 < figures.ttft_s_median <= figures.ttft_s_max < figures.seconds
    assert figures.step_s is not None
    assert figures.step_context is not None
    assert 10 < figures.step_context < 18


def test_a_load_that_is_late_is_cancelled_and_the_engine_goes_on(engine: PyTorchEngine) -> None:
    prompts = random_prompts(2, 10, 320, random.Random(2))
    with pytest.raises(OutOfTime, match="the time was up after"):
        run_load(engine, prompts, 100, time.monotonic())
    assert engine.stats().active == engine.stats().queued == 0
    assert run_load(engine, prompts, 2, time.monotonic() + 60).seconds > 0


def test_a_request_that_the_engine_fails_is_a_failure(engine: PyTorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = random_prompts(1, 10, 320, random.Random(3))
    with monkeypatch.context() as patched:
        patched.setattr(MixtralModel, "forward", lambda *_: 1 / 0)
        with pytest.raises(LoadFailed, match="the engine failed a request: the engine failed to compute this request"):
            run_load(engine, prompts, 5, time.monotonic() + 60)
    assert run_load(engine, prompts, 2, time.monotonic() + 60).seconds > 0


@torch.no_grad()
def test_the_peer_computes_the_same_model() -> None:
    config = config_of(MINIATURE, "int8")
    token_ids = [5, 17, 300, 44, 9, 121]
    expected = random_model(config, CPU).forward_logits(token_ids)
    peer = Peer(RandomCheckpoint(config, CPU), 32, compiled=False)
    for position, token in enumerate(token_ids):
        peer.token.fill_(token)
        peer.position.fill_(position)
        peer()
        found = peer.logits[0]
        assert (found - expected[position]).norm() < 0.03 * expected[position].norm(), position


@torch.no_grad()
def test_the_peer_s_layer_can_be_compiled_as_one_graph() -> None:
    """Without PyTorch's code generator, which takes a minute with a CPU's compiler."""
    config = config_of(MINIATURE, "int8")
    one = load_layer(RandomCheckpoint(config, CPU), 0, 16)
    x = torch.randn(1, config.hidden_size).bfloat16()
    position, mask = torch.tensor([3]), (torch.arange(16) <= 3)[None, None, None]
    half = config.head_size // 2
    rest = [*one.norms, *one.qkv, *one.dense, one.router, *one.fc, *one.proj, one.cache]
    arguments = (x, position, mask, torch.ones(1, half), torch.zeros(1, half), *rest)
    step = layer_step(config)
    expected = step(*arguments)
    found = torch.compile(step, fullgraph=True, dynamic=False, backend="aot_eager")(*arguments)
    assert (found - expected).float().norm() < 0.02 * expected.float().norm()
