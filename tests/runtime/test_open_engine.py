"""From an engine directory to a running engine, and the mismatches that are refused before anything is loaded."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.engine import EngineLimits, Request
from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.manifest import Manifest, ModelInfo, Returns, describe_files
from mixtral_runtime.open_engine import open_engine
from mixtral_runtime.pytorch.model import MixtralModel

FILES = ["config.json", "rank0.safetensors"]


@pytest.fixture
def engine_dir(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    for name in FILES:
        os.link(checkpoint.directory / name, tmp_path / name)
    Manifest(
        runtime="pytorch",
        versions={},
        gpu="cpu",
        precision="int8",
        dtype="bfloat16",
        kv_cache_dtype="bfloat16",
        limits=EngineLimits(4, 100, 128, 64),
        model=ModelInfo.of(checkpoint.config),
        returns=Returns(log_probs=True, prompt_log_probs=True, context_logits=False, generation_logits=False),
        source=None,
        files=describe_files(tmp_path, FILES),
        kv_cache_tokens=256,
    ).write(tmp_path)
    return tmp_path


def rewrite(engine_dir: Path, **changes: Any) -> None:
    replace(Manifest.load(engine_dir), **changes).write(engine_dir)


def test_an_engine_directory_becomes_a_running_engine(engine_dir: Path, collect: Any, model: MixtralModel) -> None:
    engine = open_engine(engine_dir)
    assert engine.limits == EngineLimits(4, 100, 128, 64)
    assert engine.stats().kv_blocks_total * engine.stats().tokens_per_block == 256
    request_id = engine.submit(Request([1, 2, 3], 5, return_log_probs=True))
    found = collect(engine, request_id)[request_id]
    expected = model.forward_logits([1, 2, 3, *found.token_ids]).log_softmax(-1)
    assert found.log_probs == [expected[2 + i, token].item() for i, token in enumerate(found.token_ids)]
    engine.close()


def test_opening_logs_how_long_it_took_and_the_memory(engine_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        open_engine(engine_dir).close()
    (line,) = (message for message in caplog.messages if message.startswith("the engine was loaded in"))
    assert re.search(r"loaded in \d+\.\d\d s; memory: \d+\.\d\d GB of its own, \d+\.\d\d GB of mapped files", line)


def test_activations_can_be_float32(engine_dir: Path, collect: Any, checkpoint: Checkpoint) -> None:
    exact = MixtralModel.load(checkpoint, "cpu", torch.float32).forward_logits([1, 2, 3])[-1].log_softmax(-1)
    engine = open_engine(engine_dir, device="cpu", activation_dtype="float32")
    request_id = engine.submit(Request([1, 2, 3], 1, return_log_probs=True))
    assert collect(engine, request_id)[request_id].log_probs == [exact.max().item()]
    engine.close()


def test_an_unknown_activation_dtype_is_refused(engine_dir: Path) -> None:
    with pytest.raises(InvalidArgument, match="activation_dtype is int8, it must be one of float16, bfloat16, float32"):
        open_engine(engine_dir, activation_dtype="int8")


def test_an_injected_runtime_is_called_with_directory_and_manifest(
    engine_dir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path_factory.mktemp("package")
    (package / "another_runtime.py").write_text("def build(*given): return given")
    monkeypatch.syspath_prepend(str(package))
    rewrite(engine_dir, runtime="another_runtime:build")
    given: Any = open_engine(engine_dir)
    assert given == (engine_dir, Manifest.load(engine_dir))
    sys.modules.pop("another_runtime")


@pytest.mark.parametrize("runtime", ["no_such_package:build", "mixtral_runtime.errors:no_such_factory"])
def test_an_injected_runtime_that_is_not_there_is_refused(engine_dir: Path, runtime: str) -> None:
    rewrite(engine_dir, runtime=runtime)
    with pytest.raises(CheckpointError, match=f"the manifest's runtime {runtime} cannot be imported"):
        open_engine(engine_dir)


def test_a_tensorrt_llm_engine_without_the_library_is_refused_with_the_way_out(engine_dir: Path) -> None:
    rewrite(engine_dir, runtime="tensorrt-llm")
    with pytest.raises(CheckpointError, match=r"TensorRT-LLM, which is not installed here; serve it in the container"):
        open_engine(engine_dir)


def test_a_tensorrt_llm_engine_runs_behind_the_same_seam(
    engine_dir: Path, collect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXTRAL_TRTLLM_BINDINGS", "trtllm_double")
    request = Request([1, 2, 3], 5)
    expected = tokens_of(open_engine(engine_dir), request, collect)
    rewrite(engine_dir, runtime="tensorrt-llm", gpu="sm90")
    assert tokens_of(open_engine(engine_dir), request, collect) == expected
    with pytest.raises(InvalidArgument, match="device is cpu and activation_dtype None, a TensorRT-LLM engine runs on"):
        open_engine(engine_dir, device="cpu")


def tokens_of(engine: Any, request: Request, collect: Any) -> list[int]:
    request_id = engine.submit(request)
    found: list[int] = collect(engine, request_id)[request_id].token_ids
    engine.close()
    return found


def test_an_engine_for_a_gpu_is_refused_on_a_cpu(engine_dir: Path) -> None:
    rewrite(engine_dir, gpu="sm90")
    with pytest.raises(CheckpointError, match=r"built for sm90, the device is cpu; .*mixtral-build engine"):
        open_engine(engine_dir, device="cpu")


def test_a_checkpoint_of_another_model_is_refused(engine_dir: Path) -> None:
    rewrite(engine_dir, model=replace(Manifest.load(engine_dir).model, num_experts=8))
    with pytest.raises(CheckpointError, match="the manifest says num_experts 8, the checkpoint has 4; build"):
        open_engine(engine_dir)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(engine_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="the device is cuda, this machine has no CUDA GPU"):
        open_engine(engine_dir, device="cuda")


def test_a_truncated_file_is_refused(engine_dir: Path) -> None:
    weights = engine_dir / "rank0.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=f"{len(data) - 1} bytes, the manifest says {len(data)}"):
        open_engine(engine_dir)
