"""Two ranks under a real mpirun: the first serves, the second works and opens nothing, and both end together.

TensorRT-LLM itself is replaced by the double of its bindings, which makes all tokens in the first rank.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from system_fixtures import ROOT
from system_server import Server, free_address

from mixtral_runtime.manifest import Manifest
from mixtral_serving.server.process import ServerProcess


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here; on Debian and Ubuntu it is in openmpi-bin")
def test_two_ranks_start_serve_and_stop_together(
    engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(shutil.copytree(engine_dir, tmp_path / "engine"))
    shutil.copy(directory / "rank0.safetensors", directory / "rank1.safetensors")
    manifest = Manifest.load(engine_dir)
    files = manifest.files | {"rank1.safetensors": manifest.files["rank0.safetensors"]}
    replace(manifest, runtime="tensorrt-llm", files=files).write(directory)
    monkeypatch.setenv("MIXTRAL_TRTLLM_BINDINGS", "trtllm_double")
    monkeypatch.setenv("MIXTRAL_PLUGIN_PATH", str(ROOT / "tests" / "support"))
    address = free_address()
    with (
        (tmp_path / "log").open("w") as log,
        ServerProcess(ROOT / "model_repository", directory, address, log=log, verbose=True) as server,
    ):
        server.wait_until_ready(120)
        assert Server(address).ask(text_input="Once upon a time", max_tokens=10).text
        assert server.process is not None
        family = psutil.Process(server.process.pid).children(recursive=True)
        programs = [process.name() for process in family]
        assert programs.count("tritonserver") == 2
        server.signal(15)
        server.process.wait(60)
    _, left = psutil.wait_procs(family, timeout=10)
    # A container's first process may leave the dead unburied.
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
    assert "the leading rank of this engine has ended" in (tmp_path / "log").read_text(), "why the second rank ended"
