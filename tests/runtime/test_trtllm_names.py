"""The adapter uses no name of TensorRT-LLM's bindings that is not recorded, and the double would not let it."""

import ast
import enum
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trtllm_double
from strict_bindings import RECORDED

import mixtral_runtime.tensorrt_llm

trtllm: Any = trtllm_double
PACKAGE = Path(mixtral_runtime.tensorrt_llm.__path__[0])
CLASSES = {name: spec for name, spec in RECORDED.items() if isinstance(spec, dict) and "init" in spec}
# What the adapter calls a thing, and what it is there.
VARIABLES = {
    "self._executor": "Executor",
    "executor": "Executor",
    "response": "Response",
    "result": "Result",
    "response.result": "Result",
    "iteration": "IterationStats",
    "kv_cache": "KvCacheStats",
    "inflight": "InflightBatchingStats",
    "metrics": "RequestPerfMetrics",
    "timing": "TimingMetrics",
    "knobs": "ExtendedRuntimePerfKnobConfig",
}
# What they would be in a later version, or in a natural mistake.
ABSENT = ("onboard", "disagg_request_id", "cache_salt")


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.glob("*.py")):
        yield path.name, ast.parse(path.read_text(encoding="utf-8"))


def test_every_class_enumeration_and_argument_is_recorded() -> None:
    seen = set()
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).removeprefix("self._") == "trtllm":
                seen.add(node.attr)
                assert node.attr in CLASSES or node.attr in RECORDED["enums"], f"{file}: {ast.unparse(node)}"
            if isinstance(node, ast.Attribute) and (owner := _name(node.value)) in RECORDED["enums"]:
                assert node.attr in RECORDED["enums"][owner], f"{file}: {ast.unparse(node)}"
            if isinstance(node, ast.Call) and (called := _name(node.func)) in CLASSES:
                names = [parameter["name"] for parameter in CLASSES[called]["init"]]
                assert not node.args, f"{file}: {called} has positional arguments, whose order differs by version"
                assert all(word.arg is None or word.arg in names for word in node.keywords), f"{file}: {called}"
    assert {"Executor", "ExecutorConfig", "Request", "SamplingConfig", "OutputConfig", "FinishReason"} <= seen


def test_every_attribute_of_what_comes_back_is_recorded() -> None:
    seen = set()
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (kind := VARIABLES.get(ast.unparse(node.value))):
                spec = CLASSES[kind]
                seen.add(f"{kind}.{node.attr}")
                assert node.attr in [*spec["properties"], *spec["methods"]], f"{file}: {ast.unparse(node)}"
    assert {"Executor.await_responses", "Result.output_token_ids", "KvCacheStats.reused_blocks"} <= seen


def test_arguments_that_other_versions_lack_or_rename_are_never_passed() -> None:
    for file, tree in trees():
        words = {word.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords}
        assert not [word for word in words if word and any(part in word for part in ABSENT)], file


def _name(node: ast.expr) -> str:
    """`KvCacheConfig` of `trtllm.KvCacheConfig`, empty for what is not of the bindings."""
    text = ast.unparse(node).removeprefix("self._")
    return text.removeprefix("trtllm.") if text.startswith("trtllm.") else ""


# The double refuses what nanobind would refuse


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: trtllm.SamplingConfig(1, 5), "2 positional arguments, 1 are allowed"),
        (lambda: trtllm.SamplingConfig(topk=5), "unknown argument topk"),
        (lambda: trtllm.SamplingConfig(top_k=5.5), r"top_k is 5\.5, it must be Optional\[int\]"),
        (lambda: trtllm.SamplingConfig(beam_width=None), "beam_width is None, it must be int"),
        (lambda: trtllm.Request(max_tokens=1), "input_token_ids is missing"),
        (lambda: trtllm.Request([1], 2, streaming=None), "streaming is None, it must be bool"),
        (lambda: trtllm.Request([1], 2, sampling_config=None), "sampling_config is None"),
        (lambda: trtllm.Request([1], 2, stop_words=[5, 6]), "stop_words is"),
        (lambda: trtllm.Request([1], 2, allotted_time_ms=1500), "allotted_time_ms is 1500"),
        (lambda: trtllm.Request([1], 2, disagg_request_id=1), "unknown argument disagg_request_id"),
        (lambda: trtllm.Request([1], 2, input_token_ids=[1]), "input_token_ids given twice"),
        (lambda: trtllm.ExecutorConfig(kv_cache_config=None), "kv_cache_config is None"),
        (lambda: trtllm.ExtendedRuntimePerfKnobConfig(cuda_graph_mode=True), "unknown argument cuda_graph_mode"),
        (lambda: trtllm.KvCacheRetentionConfig([]), "directory is None, it must be str"),
        (lambda: trtllm.DecodingMode(), "no constructor defined"),
        (lambda: trtllm.SchedulerConfig(trtllm.BatchingType.STATIC), "capacity_scheduler_policy is"),
    ],
)
def test_wrong_calls_are_type_errors(call: Any, complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        call()


def test_wrong_calls_of_the_executors_methods_are_type_errors(open_double: Any) -> None:
    executor = open_double()._executor
    calls: list[Any] = [
        lambda: executor.await_responses(timeout=0.1),
        lambda: executor.await_responses(wait=timedelta(seconds=1)),
        lambda: executor.enqueue_request([1, 2]),
        lambda: executor.cancel_request(None),
        lambda: executor.shutdown(1),
        lambda: trtllm.Executor("dir", "decoder", trtllm.ExecutorConfig()),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call()
    with pytest.raises(AttributeError):
        executor.enqueue(1)


def test_attributes_that_are_not_recorded_cannot_be_read_or_set() -> None:
    request = trtllm.Request([1], 2)
    for name in ("priority", "num_return_sequences"):  # constructor arguments only
        with pytest.raises(AttributeError):
            getattr(request, name)
    with pytest.raises(AttributeError):
        request.temperature = 1.0
    with pytest.raises(AttributeError):
        request.max_tokens = 3  # read-only
    with pytest.raises(TypeError, match=r"Request\.end_id is 'x'"):
        request.end_id = "x"
    knobs = trtllm.ExtendedRuntimePerfKnobConfig()
    knobs.cuda_graph_mode = True
    assert knobs.cuda_graph_mode is True


def test_enumerations_have_exactly_the_recorded_members() -> None:
    for name, members in RECORDED["enums"].items():
        kind: Any = trtllm
        for part in name.split("."):
            kind = getattr(kind, part)
        assert issubclass(kind, enum.Enum)
        assert [member.name for member in kind] == members
    assert not hasattr(trtllm.FinishReason, "EOS")
