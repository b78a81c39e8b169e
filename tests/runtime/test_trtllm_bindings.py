"""Finding TensorRT-LLM's bindings: absent, broken, present with another version or GPU, or replaced by a module."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trtllm_double

from mixtral_runtime.errors import CheckpointError, Internal, Unavailable
from mixtral_runtime.manifest import Manifest
from mixtral_runtime.tensorrt_llm.bindings import IMAGE, Bindings, load_bindings
from mixtral_runtime.tensorrt_llm.engine import TensorRtLlmEngine, check_machine
from mixtral_runtime.tensorrt_llm.settings import TensorRtLlmSettings


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """install(code): a package of that code under the name that is looked for; without a call there is none."""
    monkeypatch.delenv("MIXTRAL_TRTLLM_BINDINGS", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(code: str) -> None:
        package = tmp_path / "tensorrt_llm" / "bindings"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").write_text(code)
        (package / "__init__.py").write_text("")
        (package / "executor.py").write_text("")

    yield put
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]


def test_without_the_library_the_error_names_the_image_and_the_other_runtime(install: Any) -> None:
    with pytest.raises(CheckpointError, match="not installed here") as refused:
        load_bindings()
    assert IMAGE in str(refused.value)
    assert "--runtime pytorch" in str(refused.value)


def test_its_banner_does_not_reach_stdout(install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install("print('[TensorRT-LLM] TensorRT-LLM version: 1.2.1')\n__version__ = '1.2.1'")
    bindings = load_bindings()
    assert bindings.version == "1.2.1"
    assert bindings.module.__name__ == "tensorrt_llm.bindings.executor"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "version: 1.2.1" in captured.err


def test_the_images_old_openai_is_named_with_its_remedy(install: Any) -> None:
    """The defect of the images 26.03 to 26.07."""
    install("raise ImportError(\"cannot import name 'PartReasoningText' from 'openai.types.responses.x'\")")
    with pytest.raises(CheckpointError, match=r"PartReasoningText.*; the image's openai is too old, `pip install -U"):
        load_bindings()


@pytest.mark.parametrize("code", ["import no_such_dependency", "raise ImportError('libcuda.so.1: cannot open')"])
def test_a_broken_installation_says_what_is_missing(install: Any, code: str) -> None:
    install(code)
    with pytest.raises(CheckpointError, match=r"installed but cannot be imported: .*(no_such_dependency|libcuda)") as e:
        load_bindings()
    assert "openai" not in str(e.value)


def test_an_injected_module_takes_its_place_and_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXTRAL_TRTLLM_BINDINGS", "trtllm_double")
    assert load_bindings() == Bindings(trtllm_double, None)
    monkeypatch.setenv("MIXTRAL_TRTLLM_BINDINGS", "no_such_module")
    with pytest.raises(CheckpointError, match="MIXTRAL_TRTLLM_BINDINGS no_such_module cannot be imported"):
        load_bindings()


def test_version_and_gpu_must_be_those_it_was_built_with(
    trtllm_engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.load(trtllm_engine_dir)
    check_machine(replace(manifest, versions={}), Bindings(trtllm_double, None))
    with pytest.raises(
        CheckpointError, match=r"built with TensorRT-LLM 1\.2\.1, here is 1\.1\.0; .*mixtral-build engine"
    ):
        check_machine(manifest, Bindings(None, "1.1.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CheckpointError, match="built for sm80, this machine has no CUDA GPU"):
        check_machine(manifest, Bindings(None, "1.2.1"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(CheckpointError, match=r"built for sm80, the GPU is sm90; .*mixtral-build engine"):
        check_machine(manifest, Bindings(None, "1.2.1"))
    check_machine(replace(manifest, gpu="sm90"), Bindings(None, "1.2.1"))


def test_an_engine_that_cannot_be_loaded_is_one_sentence(
    trtllm_engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXTRAL_TRTLLM_BINDINGS", "trtllm_double")

    def fail(self: Any, **arguments: Any) -> None:
        raise RuntimeError("[TensorRT-LLM][ERROR] Assertion failed: out of memory\n1  0x7f a stack")

    monkeypatch.setattr(trtllm_double.Executor, "__init__", fail)
    with pytest.raises(Internal) as failed:
        TensorRtLlmEngine.open(trtllm_engine_dir, Manifest.load(trtllm_engine_dir), TensorRtLlmSettings())
    assert "out of memory" in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_rank_that_does_not_lead_waits_in_shutdown_and_serves_nobody(
    trtllm_engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXTRAL_TRTLLM_BINDINGS", "trtllm_double")
    calls: list[str] = []
    rank = SimpleNamespace(can_enqueue_requests=lambda: False, shutdown=lambda: calls.append("shutdown"))
    monkeypatch.setattr(trtllm_double, "Executor", lambda **arguments: rank)
    with pytest.raises(Unavailable, match="the leading rank of this engine has ended"):
        TensorRtLlmEngine.open(trtllm_engine_dir, Manifest.load(trtllm_engine_dir), TensorRtLlmSettings())
    assert calls == ["shutdown"]
