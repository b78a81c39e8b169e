"""`mixtral eval` through the real server and `mixtral-build evaluate` on the weights find the same figures.

Both compute in float32 here, where the orders of their sums differ by parts in ten million; the tolerance is 1e-5. (In
bfloat16, the default of a server, perplexities on this text differ by about 1e-4.)
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from quality_questions import write_questions
from system_fixtures import triton_server
from system_server import Server

from mixtral_serving.server.installation import unsupported_platform

BIN = Path(sys.executable).parent
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def exact_server(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if reason := unsupported_platform():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("exact")
    config = folder / "serve.toml"
    config.write_text('[engine]\nactivation_dtype = "float32"\n')
    with triton_server(engine_dir, folder, config) as server:
        yield server


def figures(command: str, *arguments: str | Path) -> dict[str, Any]:
    done = subprocess.run([BIN / command, *arguments, "--json"], check=True, stdout=subprocess.PIPE, timeout=120)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_perplexity_and_accuracy(exact_server: Server, engine_dir: Path, demo_model: Path, tmp_path: Path) -> None:
    heldout = demo_model / "heldout.jsonl"
    texts, test, dev = (tmp_path / name for name in ("texts.jsonl", "test.jsonl", "dev.jsonl"))
    texts.write_text("\n".join(heldout.read_text(encoding="utf-8").split("\n")[::16]), encoding="utf-8")
    write_questions(heldout, test, dev, questions=8)
    windows = ["--context", "64", "--stride", "48"]
    shots: list[str | Path] = ["--dev", dev, "--shots", "2"]
    direct = figures(
        "mixtral-build", "evaluate", engine_dir, "--text", texts, *windows, "--multiple-choice", test, *shots
    )
    url = ["--url", exact_server.grpc_url]
    served = figures("mixtral", "eval", "perplexity", texts, *windows, *url)
    expected = direct["perplexity"]
    assert served["perplexity"] == expected | {"perplexity": pytest.approx(expected["perplexity"], rel=TOLERANCE)}
    assert (served["partial"], served["errors"]) == (False, {})
    served = figures("mixtral", "eval", "multiple-choice", test, *shots, *url)
    assert served["requests"] == 8 * 4
    assert served["multiple_choice"] == direct["multiple_choice"]
