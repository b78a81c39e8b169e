"""Engines built, asked and served by the checks: on the PyTorch engine behind a double of the library's bindings.

What is shown here is the way through the checks. No engine of TensorRT-LLM is built or run.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from container_check import engines, served
from container_check.check import Failed, NotAvailable, Status
from container_check.engines import PROMPTS, agreement, engine_folder, judge, tokens_file
from container_check.machine import Gpu, look_around
from container_check.workplace import ROOT, Finished, Workplace

from mixtral_serving.server.installation import unsupported_platform

A100 = Gpu("NVIDIA A100-SXM4-80GB", 81920, "8.0")
# Leaves what a successful run leaves, and beside it the weights as the double of the bindings reads them.
BUILDER = """#!{python}
import json, pathlib, subprocess, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
source, target = pathlib.Path(flags["--checkpoint_dir"]), pathlib.Path(flags["--output_dir"])
convert = [{python!r}, "-m", "mixtral_build", "convert", source, target / "plain", "--layout", "plain"]
subprocess.run(convert, check=True)
(target / "plain" / "rank0.safetensors").rename(target / "rank0.safetensors")
config = json.loads((target / "plain" / "config.json").read_text())
sizes = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")
build_config = {{name: int(flags["--" + name]) for name in sizes}}
(target / "config.json").write_text(json.dumps(config | {{"version": "0.0", "build_config": build_config}}))
(target / "rank0.engine").write_bytes(b"engine")
import shutil
shutil.rmtree(target / "plain")
{ending}
"""


def answers(*tokens: Sequence[int]) -> list[dict[str, Any]]:
    return [{"prompt": f"prompt {place}", "tokens": list(part), "text": ""} for place, part in enumerate(tokens)]


def test_equal_tokens_pass() -> None:
    same = answers(range(64), range(20))
    assert judge(same, same).details == (
        "'prompt 0': all 64 tokens are equal",
        "'prompt 1': all 20 tokens are equal",
        "before the first difference: 84 of 84 tokens, 100%",
    )


def test_a_late_difference_is_told_and_passes() -> None:
    changed = [*range(40), 7, *range(41, 64)]
    outcome = judge(answers(range(64), range(20)), answers(changed, [*range(20), 5]))
    assert outcome.status == Status.PASS
    assert outcome.details == (
        "'prompt 0': 40 of 64 tokens are equal, then 7 instead of 40",
        "'prompt 1': 20 of 21 tokens are equal, then 5 instead of the end",
        "before the first difference: 60 of 85 tokens, 71%",
    )


def test_an_early_difference_fails() -> None:
    with pytest.raises(Failed) as failure:
        judge(answers(range(64), range(64)), answers(range(64), [*range(7), 99]))
    assert failure.value.args[1] == "'prompt 1': 7 of 64 tokens are equal, then 99 instead of 7"
    assert failure.value.advice is not None


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"), [([], [], 0), ([1], [], 0), ([1, 2], [1, 3], 1), ([1, 2], [1, 2, 3], 2)]
)
def test_agreement_counts_up_to_the_first_difference(ours: list[int], theirs: list[int], expected: int) -> None:
    assert agreement(ours, theirs) == agreement(theirs, ours) == expected


def workplace(tmp_path: Path, demo_model: Path, ending: str = "", gpu: Gpu | None = A100) -> Workplace:
    programs, folder = tmp_path / "bin", tmp_path / "work"
    programs.mkdir()
    folder.mkdir()
    builder = programs / "trtllm-build"
    builder.write_text(BUILDER.format(python=sys.executable, ending=ending))
    builder.chmod(0o755)
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "MIXTRAL_TRTLLM_BINDINGS": "trtllm_double",
        "MIXTRAL_PLUGIN_PATH": str(ROOT / "tests" / "support"),
    }
    machine = replace(look_around(), gpus=(gpu,) if gpu else ())
    return Workplace(folder, demo_model, machine, environment=environment, build_for="a100")


@pytest.mark.skipif(unsupported_platform() is not None, reason="needs Triton")
def test_an_engine_is_built_compared_and_served(tmp_path: Path, demo_model: Path) -> None:
    place = workplace(tmp_path, demo_model)
    outcome = engines.int8(place)
    assert outcome.status == Status.PASS
    assert len(outcome.details) == len(PROMPTS) + 1
    assert outcome.details[-1].endswith("100%")  # the same weights and the same arithmetic
    assert tokens_file(place, "int8").is_file()
    assert (engine_folder(place, "int8") / "manifest.json").is_file()
    outcome = engines.arguments(place)
    assert outcome.status == Status.PASS
    assert [line.partition(":")[0] for line in outcome.details] == [
        "logit_bias that forces", "logit_bias that bans", "bad_sequences", "end_id", "min_tokens", "presence_penalty",
        "frequency_penalty", "repetition_penalty",
    ]  # fmt: skip
    outcome = served.check(place)
    assert outcome.status == Status.PASS
    assert outcome.details[1] == f"{len(PROMPTS)} streamed answers are the engine's own text"
    assert outcome.details[-1] == "stopped in order"


def test_an_argument_without_effect_is_told(tmp_path: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def program(place: Workplace, name: str, engine: Path, target: Path, timeout_s: float) -> Finished:
        target.parent.mkdir(parents=True)
        target.write_text('[{"argument": "bad_sequences", "holds": false, "tokens": [7, 8]}]')
        return Finished(0, "")

    monkeypatch.setattr(Workplace, "program", program)
    with pytest.raises(Failed, match="bad_sequences: does not hold, \\[7, 8\\]"):
        engines.arguments(workplace(tmp_path, demo_model))


def test_a_build_that_fails_says_its_last_words_and_the_shape(tmp_path: Path, demo_model: Path) -> None:
    place = workplace(tmp_path, demo_model, ending="print('a traceback'); sys.exit('head size 64 is not supported')")
    (place.folder / "int8" / "checkpoint").mkdir(parents=True)  # kept from an earlier run
    with pytest.raises(Failed) as failure:
        engines.int8(place)
    first, *lines, remark = failure.value.args
    assert first == "building the tensorrt-llm engine ended with status 1, its last lines:"
    assert lines[-2:] == ["a traceback", "head size 64 is not supported"]  # of the builder's own log
    assert any("exit status 1, its log is " in line for line in lines)
    assert remark.startswith("this model has head size 64 and hidden size 256; if the library refuses that shape, ")


def test_a_server_that_does_not_start_says_why(tmp_path: Path, demo_model: Path) -> None:
    with pytest.raises(Failed) as failure:
        served.serve_and_ask(workplace(tmp_path, demo_model), tmp_path / "no-engine", [])
    assert failure.value.args[0] == "the server did not become ready, the last lines of its log:"
    assert "manifest.json does not exist" in failure.value.args[1]


@pytest.mark.parametrize(
    ("check", "gpu", "reason"),
    [
        (engines.int8, None, "TensorRT-LLM builds and runs engines on a GPU only, and there is none"),
        (engines.fp8, None, "TensorRT-LLM builds and runs engines on a GPU only, and there is none"),
        (engines.arguments, None, "TensorRT-LLM runs engines on a GPU only, and there is none"),
        (engines.fp8, A100, "FP8 needs SM89 or later, GPU 0 is SM80"),
        (served.check, None, "a TensorRT-LLM engine is served on a GPU only, and there is none"),
    ],
)
def test_what_this_machine_cannot_do(
    tmp_path: Path, demo_model: Path, check: Any, gpu: Gpu | None, reason: str
) -> None:
    with pytest.raises(NotAvailable) as absence:
        check(workplace(tmp_path, demo_model, gpu=gpu))
    assert str(absence.value) == reason
