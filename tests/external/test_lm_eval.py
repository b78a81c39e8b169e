"""lm-evaluation-harness scores multiple choice through the gateway as `mixtral-build evaluate` does on the weights.

In float32, where both compute the same in another order of sums. The task and the command are those of docs/clients.md.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from clients_page import OPENAI, PAGE
from gateway_process import gateway_process
from quality_questions import write_questions
from system_fixtures import ROOT, triton_server

from mixtral_build.model_directory import ModelDirectory
from mixtral_build.multiple_choice import answer_log_likelihoods, render
from mixtral_build.questions import read_questions
from mixtral_runtime.tokenizer import encode_prompt

LM_EVAL = ROOT / ".tools" / "lm_eval-0.4.13" / "bin" / "lm-eval"
QUESTIONS = 12


@pytest.fixture
def gateway_url(engine_dir: Path, tmp_path: Path) -> Iterator[str]:
    config = tmp_path / "serve.toml"
    config.write_text('[engine]\nactivation_dtype = "float32"\n')
    with triton_server(engine_dir, tmp_path, config) as server, gateway_process(server.grpc_url) as gateway:
        yield gateway.url


def harness(url: str, demo_model: Path, folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """The accuracy and the samples, in the questions' order."""
    page = PAGE.read_text()
    task, command = re.search(r"```yaml\n(task: .*?)```\n\n    (lm-eval .*?)\n\n", page, re.DOTALL).groups()  # type: ignore[union-attr]
    (folder / "questions.yaml").write_text(task)
    command = command.replace("\\\n", " ").replace(OPENAI, url.removeprefix("http://"))
    _, *arguments = shlex.split(command.replace("models/tiny-mixtral", str(demo_model)))
    done = subprocess.run(
        [LM_EVAL, *arguments],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = folder.glob("results/*/results_*.json")
    (samples,) = folder.glob("results/*/samples_questions_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"]["questions"]["acc,none"], sorted(
        lines, key=lambda line: line["doc_id"]
    )


def log_likelihoods(engine_dir: Path, questions: Path) -> list[list[float]]:
    """Of each question's letters, from the weights."""
    model = ModelDirectory.open(engine_dir)
    tokenizer = model.tokenizer()
    wanted = []
    for question in read_questions(questions):
        prompt = render(question, ())
        before = len(encode_prompt(tokenizer, prompt))
        wanted.append([(before, encode_prompt(tokenizer, f"{prompt} {letter}")) for letter in "ABCD"])
    return answer_log_likelihoods(model.layers(torch.device("cpu"), torch.float32), wanted)


def test_accuracy_is_equal_and_log_likelihoods_agree(
    gateway_url: str, engine_dir: Path, demo_model: Path, tmp_path: Path
) -> None:
    assert LM_EVAL.is_file(), "lm_eval is missing; run these tests with `make test-external`"
    file = tmp_path / "questions.jsonl"
    write_questions(demo_model / "heldout.jsonl", file, tmp_path / "dev.jsonl", questions=QUESTIONS)
    accuracy, samples = harness(gateway_url, demo_model, tmp_path)

    program = Path(sys.executable).parent / "mixtral-build"
    command = [str(program), "evaluate", str(engine_dir), "--multiple-choice", str(file), "--json"]
    direct = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300).stdout)
    assert accuracy == pytest.approx(direct["multiple_choice"]["accuracy"], abs=1e-9)

    expected = log_likelihoods(engine_dir, file)
    found = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
    assert len(found) == QUESTIONS
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-4)
        assert len(set(theirs)) == 4
