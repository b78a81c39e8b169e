"""The recorded bindings against described ones: every change gives its line, with the weight that it has for us."""

import copy
import json
from typing import Any

import pytest
from container_check.adapter_use import AdapterUse, scan, scan_sources
from container_check.bindings import RECORD, compare, probe_differences
from container_check.difference import Difference, Weight
from hypothesis import given, settings
from hypothesis import strategies as st
from nanobind_docs import looks

RECORDED: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
CLASSES = sorted(name for name, entry in RECORDED.items() if "init" in entry)
WITH_ARGUMENTS = [name for name in CLASSES if RECORDED[name]["init"]]

# What an adapter might look like: it makes these objects, by name, and reads these attributes.
ADAPTER = """
def submit(self, request):
    config = self.bindings.SamplingConfig(1, top_k=5, temperature=0.5)
    output = self.bindings.OutputConfig(**{"return_log_probs": True})
    made = self.bindings.Request(request.ids, max_tokens=4, streaming=True, sampling_config=config)
    executor_config = self.bindings.ExecutorConfig(1, normalize_log_probs=False)
    knobs = self.bindings.ExtendedRuntimePerfKnobConfig()
    knobs.cuda_graph_mode = True
    self.executor = self.bindings.Executor(self.path, self.bindings.ModelType.DECODER_ONLY, executor_config)
    return self.executor.enqueue_request(made)

def poll(self):
    for response in self.executor.await_responses(timeout=self.timeout):
        yield response.result.output_token_ids, response.result.finish_reasons == [self.bindings.FinishReason.LENGTH]
"""
USE = scan_sources([ADAPTER])


def differences(change: Any, use: AdapterUse = USE) -> list[Difference]:
    """change: told the described bindings and the record behind them, to change what is found."""
    record = copy.deepcopy(RECORDED)
    change(record)
    return compare(RECORDED, looks(record), use)


def parameter_of(record: dict[str, Any], owner: str, name: str) -> dict[str, Any]:
    return next(parameter for parameter in record[owner]["init"] if parameter["name"] == name)


def test_the_recorded_api_has_no_difference_from_itself() -> None:
    assert differences(lambda record: None) == []


@pytest.mark.parametrize(
    ("owner", "name", "weight"),
    [
        ("Request", "max_tokens", Weight.AFFECTS_US),
        ("Request", "client_id", Weight.HARMLESS),
        ("SamplingConfig", "beam_width", Weight.AFFECTS_US),  # given by position
        ("SamplingConfig", "min_p", Weight.HARMLESS),
        ("OutputConfig", "return_log_probs", Weight.AFFECTS_US),  # given in a dictionary
        ("PeftCacheConfig", "num_put_workers", Weight.HARMLESS),
    ],
)
def test_an_argument_that_is_gone(owner: str, name: str, weight: Weight) -> None:
    def remove(record: dict[str, Any]) -> None:
        record[owner]["init"].remove(parameter_of(record, owner, name))

    text = f"{owner}() has no argument {name} any more"
    assert Difference(weight, text) in differences(remove)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("Request", "stop_words"),
        ("Request", "bad_words"),
        ("Request", "embedding_bias"),
        ("Request", "allotted_time_ms"),
        ("SamplingConfig", "repetition_penalty"),
        ("SamplingConfig", "presence_penalty"),
        ("SamplingConfig", "frequency_penalty"),
        ("SamplingConfig", "min_tokens"),
        ("SamplingConfig", "min_p"),
    ],
)
def test_what_our_adapter_gives_only_to_some_requests_is_not_overlooked(owner: str, name: str) -> None:
    def remove(record: dict[str, Any]) -> None:
        record[owner]["init"].remove(parameter_of(record, owner, name))

    assert Difference(Weight.AFFECTS_US, f"{owner}() has no argument {name} any more") in differences(remove, scan())


@pytest.mark.parametrize(
    ("owner", "name", "weight"),
    [
        ("ExecutorConfig", "normalize_log_probs", Weight.HARMLESS),  # we always give it
        ("ExecutorConfig", "enable_trt_overlap", Weight.NOTE),  # we leave it to the library
        ("KvCacheConfig", "enable_block_reuse", Weight.HARMLESS),  # this adapter never makes one
    ],
)
def test_a_default_that_changed(owner: str, name: str, weight: Weight) -> None:
    def flip(record: dict[str, Any]) -> None:
        parameter = parameter_of(record, owner, name)
        parameter["default"] = not parameter["default"]

    old = parameter_of(RECORDED, owner, name)["default"]
    text = f"{owner}(), argument {name} has the default {not old}, {old} was recorded"
    assert differences(flip) == [Difference(weight, text)]


def test_an_argument_that_is_required_now() -> None:
    def require(record: dict[str, Any]) -> None:
        for name in ("streaming", "client_id"):
            parameter_of(record, "Request", name).update(default="required", type="bool")

    found = [str(difference) for difference in differences(require)]
    assert "harmless: Request(), argument streaming is required now, the default was False" in found
    assert "affects us: Request(), argument client_id is required now, the default was None" in found


@pytest.mark.parametrize(
    ("kind", "default", "place", "weight", "word"),
    [
        ("keyword_only", "None", -1, Weight.HARMLESS, "argument"),
        ("keyword_only", "required", -1, Weight.AFFECTS_US, "required argument"),
        ("positional", "None", 0, Weight.AFFECTS_US, "argument"),  # pushes what we give by position
        ("positional", "None", 1, Weight.HARMLESS, "argument"),  # behind it
    ],
)
def test_a_new_argument(kind: str, default: str, place: int, weight: Weight, word: str) -> None:
    def add(record: dict[str, Any]) -> None:
        parameters = record["SamplingConfig"]["init"]
        new = {"name": "novel", "kind": kind, "default": default, "type": "Optional[int]"}
        parameters.insert(len(parameters) if place < 0 else place, new)

    assert Difference(weight, f"SamplingConfig() has the new {word} novel") in differences(add)


def test_arguments_in_another_order() -> None:
    def swap(record: dict[str, Any]) -> None:
        for owner in ("Request", "OutputConfig"):
            parameters = record[owner]["init"]
            parameters[0], parameters[1] = parameters[1], parameters[0]

    assert sorted(map(str, differences(swap))) == [
        "affects us: Request(), argument input_token_ids is at place 2, 1 was recorded",  # given by position
        "harmless: OutputConfig(), argument return_context_logits is at place 1, 2 was recorded",
        "harmless: OutputConfig(), argument return_log_probs is at place 2, 1 was recorded",
        "harmless: Request(), argument max_tokens is at place 1, 2 was recorded",  # given by name
    ]


def test_keyword_only_arguments_in_another_order_are_no_difference() -> None:
    def turn(record: dict[str, Any]) -> None:
        record["Request"]["init"][2:] = reversed(record["Request"]["init"][2:])

    assert differences(turn) == []


def test_an_argument_that_can_only_be_given_by_name_now() -> None:
    def close(record: dict[str, Any]) -> None:
        for owner in ("SamplingConfig", "KvCacheConfig"):
            for parameter in record[owner]["init"]:
                parameter["kind"] = "keyword_only"

    found = differences(close)
    assert Difference(Weight.AFFECTS_US, "SamplingConfig(), argument beam_width can only be given by name now") in found
    assert all(d.weight == Weight.HARMLESS for d in found if "KvCacheConfig" in d.text)


def test_an_argument_that_does_not_take_none_any_more() -> None:
    def harden(record: dict[str, Any]) -> None:
        parameter_of(record, "SamplingConfig", "top_k").update(type="int", default=0)

    assert "affects us: SamplingConfig(), argument top_k does not take None any more" in map(str, differences(harden))


def test_classes_members_and_enums_that_are_gone_or_new() -> None:
    def change(record: dict[str, Any]) -> None:
        del record["enums"]["ModelType"]
        del record["Response"]["methods"]["clear_context_logits"]
        record["Result"]["properties"].remove("output_token_ids")
        record["Result"]["properties"].append("novel")
        record["enums"]["FinishReason"].remove("LENGTH")
        record["enums"]["FinishReason"].append("NOVEL")
        record["ExtendedRuntimePerfKnobConfig"]["read_only_properties"] = ["cuda_graph_mode"]
        del record["DebugConfig"]

    assert sorted(map(str, differences(change))) == [
        "affects us: ExtendedRuntimePerfKnobConfig.cuda_graph_mode cannot be set any more",
        "affects us: FinishReason.LENGTH is missing",
        "affects us: Result.output_token_ids is missing",
        "affects us: the enum ModelType is missing",
        "harmless: FinishReason.NOVEL is new",
        "harmless: Response.clear_context_logits() is missing",
        "harmless: Result.novel is a new property",
        "harmless: the class DebugConfig is missing",
    ]


def test_an_overload_that_is_gone_or_new() -> None:
    def change(record: dict[str, Any]) -> None:
        record["Executor"]["init_overloads"].pop(0)
        record["Executor"]["methods"]["await_responses"].append({"args": [], "returns": "int"})

    found = sorted(map(str, differences(change)))
    assert "harmless: Executor.await_responses() has a new overload: ()" in found
    assert any(text.startswith("affects us: Executor() has an overload less: (encoder_model_path") for text in found)


@settings(deadline=None)
@given(owner=st.sampled_from(WITH_ARGUMENTS), data=st.data())
def test_any_single_change_of_an_argument_is_noticed_and_names_it(owner: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(RECORDED[owner]["init"]) - 1))
    name = RECORDED[owner]["init"][place]["name"]
    how = data.draw(st.sampled_from(["remove", "rename", "default", "kind"]))

    def change(record: dict[str, Any]) -> None:
        parameter = record[owner]["init"][place]
        if how == "remove":
            record[owner]["init"].remove(parameter)
        elif how == "rename":
            parameter["name"] = f"{name}_2"
        elif how == "default":
            parameter["default"] = 12345
        else:
            keyword = parameter["kind"] == "keyword_only"
            for other in record[owner]["init"][: place + 1] if keyword else record[owner]["init"][place:]:
                other["kind"] = "positional" if keyword else "keyword_only"

    found = differences(change)
    assert any(name in difference.text and owner in difference.text for difference in found)


def test_what_an_adapter_uses_is_read_from_its_source() -> None:
    assert USE.uses("Request")
    assert USE.uses("output_token_ids")
    assert not USE.uses("KvCacheConfig")
    assert USE.calls("ExecutorConfig")
    assert USE.passes("Request", "max_tokens", 1)
    assert USE.passes("Request", "input_token_ids", 0)  # by position
    assert not USE.passes("Request", "client_id", 22)


def test_our_own_adapter_is_found() -> None:
    """Where it stands is part of what the check knows; an empty scan would make every difference harmless."""
    use = scan()
    assert {"Request", "SamplingConfig", "ExecutorConfig", "output_token_ids"} <= use.names


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (
            "ExecutorConfig().normalize_log_probs",
            "False",
            "harmless: ExecutorConfig().normalize_log_probs is False, True was recorded",
        ),
        (
            "KvCacheConfig().onboard_blocks",
            "AttributeError: no",
            "harmless: KvCacheConfig().onboard_blocks is gone",
        ),
        ("KvCacheRetentionConfig([])", "made", None),
        (
            "KvCacheRetentionConfig([])",
            "RuntimeError: no",
            "note: KvCacheRetentionConfig([]) cannot be made without directory: RuntimeError: no",
        ),
    ],
)
def test_answers_that_no_signature_gives(question: str, answer: str, expected: str | None) -> None:
    ours = probe_differences(looks(RECORDED)["probes"], USE)
    assert [str(d) for d in ours] == [
        "harmless: KvCacheRetentionConfig([]) cannot be made without directory: "
        "TypeError: incompatible function arguments"
    ]
    found = [str(d) for d in probe_differences(looks(RECORDED)["probes"] | {question: answer}, USE) if d not in ours]
    assert found == ([] if expected is None else [expected])
