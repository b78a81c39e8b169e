"""The marks of the GPU benchmark: what is compared with what, and when a mark is met, missed or not measured."""

from typing import Any

import gpu_tables
import pytest
from gpu_bars import Bar, bars, bars_text


def report(card: str = "NVIDIA H200") -> dict[str, Any]:
    def load(precision: str, batch: int, step_s: float, shape: tuple[int, int] = (512, 128)) -> dict[str, Any]:
        return {
            "precision": precision,
            "batch": batch,
            "input": shape[0],
            "output": shape[1],
            "ttft_s_median": 0.05,
            "tpot_s_median": step_s,
            "tokens_per_s": batch / step_s,
            "step_s": step_s,
            "step_bytes": 13e9,
        }

    def attention(kv_cache: str, seconds: float) -> dict[str, Any]:
        return {
            "kv_cache": kv_cache,
            "batch": 16,
            "context": 4096,
            "query": 1,
            "seconds": seconds,
            "bytes": 4e9,
            "flop": 1e11,
        }

    return {
        "machine": {"processor": card, "gpu": card, "python": "3.12.1", "versions": {"torch": "2.11"}, "kernels": "t"},
        "complete": True,
        "parts": [],
        "ceilings": {"copy_bytes_per_s": 4e12},
        "loads": [
            *(load("int8", 1, step) for step in (0.0039, 0.0040, 0.0041)),
            load("awq", 1, 0.003),
            load("int8", 32, 0.015),
            load("fp8", 32, 0.012),
            load("int8", 128, 0.02),
            load("fp8", 128, 0.025),
            load("fp8", 512, 0.05, (128, 128)),
            load("fp8", 1024, 0.12, (128, 128)),
        ],
        "prefill": [
            {"precision": "int8", "tokens": 512, "ttft_s": [0.05, 0.07, 0.052], "flop": 1.3e13},
            {"precision": "fp8", "tokens": 512, "ttft_s": [0.061], "flop": 1.3e13},
        ],
        "attention": [attention("16bit", 0.00125), attention("fp8", 0.00126)],
        "peers": [
            {
                "peer": "plain PyTorch",
                "precision": "int8",
                "compiled": True,
                "batch": 1,
                "context": 576,
                "seconds": 0.006,
                "step_bytes": 13e9,
                "compile_s": 20.0,
            }
        ],
    }


def by_name(found: dict[str, Any]) -> dict[str, Bar]:
    return {bar.name: bar for bar in bars(found)}


@pytest.mark.parametrize(
    ("name", "measured", "met"),
    [
        ("int8 decode at batch 1: share of the copy bandwidth", 13e9 / 0.004 / 4e12, True),
        ("int8 decode at batch 1 over plain PyTorch, compiled", 1.5, True),
        ("TTFT of 512 tokens, int8, on an H200: ms", 52.0, True),
        ("TTFT of 512 tokens, fp8, on an H200: ms", 61.0, False),
        ("FP8 over int8, decode steps/s at batch 32", 1.25, True),
        ("FP8 over int8, decode steps/s at batch 128", 0.8, False),
        ("4-bit over int8, decode steps/s at batch 1", 4 / 3, True),
        ("decode attention, batch 16, context 4,096, 16bit KV: share of the copy bandwidth", 0.8, True),
        ("decode attention, batch 16, context 4,096, fp8 KV: share of the copy bandwidth", 0.79365, False),
        ("128 in, 128 out, best batch: tokens/s over NVIDIA's on this card", 10_240 / 17_158, True),
        ("the same, further", 10_240 / 17_158, False),
    ],
)
def test_a_mark_is_compared_with_what_was_measured(name: str, measured: float, met: bool) -> None:
    bar = by_name(report())[name]
    assert bar.measured == pytest.approx(measured, rel=1e-4)
    assert bar.met is met


def test_marks_of_another_card_are_not_judged() -> None:
    other = by_name(report("NVIDIA A100-SXM4-80GB"))
    assert other["TTFT of 512 tokens, int8, on an H200: ms"].measured == pytest.approx(52.0)
    assert other["TTFT of 512 tokens, int8, on an H200: ms"].met is None
    assert other["the same, further"].measured is None
    assert by_name(report("NVIDIA H100 80GB HBM3"))["the same, further"].measured == pytest.approx(10_240 / 15_962)


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert {bar.met for bar in bars({})} == {None}
    assert {bar.met for bar in bars({"machine": {"gpu": "NVIDIA H200"}, "ceilings": {}})} == {None}
    assert " yes" not in bars_text({})
    assert "| – | – |" in gpu_tables.blank_chapter()


def test_the_marks_are_shown_with_their_verdict() -> None:
    text = gpu_tables.chapter(report())
    assert "| TTFT of 512 tokens, int8, on an H200: ms | below 60 | 52.00 | yes |" in text
    assert "| FP8 over int8, decode steps/s at batch 128 | at least 1 | 0.80 | no |" in text
    assert "| 512 / 128 | int8 | 1 | 50.0 | 4.00 | 250 | 4.00 | 13.0 | 0.81 |" in text
    assert "| plain PyTorch, int8, compiled | 1 | 576 | 6.00 | 166.7 | 0.54 | 20 |" in text
    assert "Most at 128 / 128: 10,240 output tokens/s, fp8, 512 requests." in text


def test_a_run_that_failed_or_was_stopped_says_so() -> None:
    stopped = report() | {"complete": False, "parts": [{"name": "peer", "seconds": 1.0, "error": "RuntimeError: no"}]}
    text = gpu_tables.chapter(stopped)
    assert "* peer failed: RuntimeError: no." in text
    assert "* The run was stopped before its end." in text
