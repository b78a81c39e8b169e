"""An engine for several GPUs: one server per rank, started by one mpirun line; only the first can be reached."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import CheckpointError, Unavailable
from mixtral_runtime.manifest import FileInfo, Manifest, ModelInfo, Returns
from mixtral_serving.server.command import Address, mpirun_command, server_command, worker_command
from mixtral_serving.server.installation import Installation
from mixtral_serving.server.preflight import check_runtime

NGC = Installation(Path("/opt/tritonserver/bin/tritonserver"), None, ())


def manifest(*files: str, **changes: Any) -> Manifest:
    made = Manifest(
        runtime="tensorrt-llm",
        versions={"tensorrt-llm": "1.2.1"},
        gpu="sm80",
        precision="16bit",
        dtype="bfloat16",
        kv_cache_dtype="bfloat16",
        limits=EngineLimits(4, 100, 128, 64),
        model=ModelInfo("MixtralForCausalLM", 2, 64, 160, 4, 2, 32, 4, 2, 512),
        returns=Returns(log_probs=True, prompt_log_probs=False, context_logits=False, generation_logits=False),
        source=None,
        files={name: FileInfo(1, "") for name in files},
    )
    return replace(made, **changes)


def test_the_manifest_tells_how_many_ranks_there_are() -> None:
    assert manifest("config.json", "rank0.engine", "rank1.engine", "tokenizer/rank2.engine").world_size == 2
    assert manifest("config.json", "rank0.safetensors").world_size == 1
    assert manifest("synthetic.json").world_size == 1


def test_the_mpirun_line_of_two_ranks() -> None:
    leader = server_command(NGC, Path("/r"), Address(), "p-")
    worker = worker_command(NGC, Path("/r"), "p-rank1-")
    assert mpirun_command([leader, worker]) == [
        *("mpirun", "--allow-run-as-root"),
        *("-n", "1", *leader),
        ":",
        *("-n", "1", *worker),
    ]
    assert mpirun_command([leader, worker, worker]).count(":") == 2


def test_a_working_rank_loads_the_engine_alone_and_opens_no_port() -> None:
    worker = worker_command(NGC, Path("/r"), "p-rank1-")
    assert worker[0] == "/opt/tritonserver/bin/tritonserver"
    assert {"--model-control-mode=explicit", "--load-model=tensorrt_llm"} <= set(worker)
    assert {"--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"} <= set(worker)
    assert not [part for part in worker if "port" in part or "address" in part]
    assert "--backend-config=python,shm-region-prefix-name=p-rank1-" in worker  # its stubs must not meet the others'


@pytest.fixture
def library_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXTRAL_TRTLLM_BINDINGS", "some_module")


@pytest.mark.usefixtures("library_is_there")
def test_several_ranks_need_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    two = manifest("rank0.engine", "rank1.engine")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(Unavailable, match="built for 2 GPUs, whose servers mpirun starts, and there is none on PATH"):
        check_runtime(two)
    check_runtime(manifest("rank0.engine"))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    check_runtime(two)


def test_a_missing_library_is_told_before_a_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXTRAL_TRTLLM_BINDINGS", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="TensorRT-LLM, which is not installed here; serve it in the container"):
        check_runtime(manifest("rank0.engine"))
    check_runtime(manifest("rank0.safetensors", runtime="pytorch"))


def test_another_version_is_told_before_a_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXTRAL_TRTLLM_BINDINGS", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.1.0")
    with pytest.raises(CheckpointError, match=r"built with TensorRT-LLM 1\.2\.1, here is 1\.1\.0; build the engine"):
        check_runtime(manifest("rank0.engine"))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.2.1")
    check_runtime(manifest("rank0.engine"))
