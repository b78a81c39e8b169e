"""Structured random requests to every model of the repository, made from the models' own config.pbtxt.

A request begins as a sound one, so that it comes far, and is then damaged: wrong types, shapes, values, bytes,
parameters. What is known to crash this Triton itself is left out (docs/reliability.md): the metadata
`triton_grpc_error`, JSON nested a hundred thousand levels deep, JSON with a shape of gigabytes, cancelling a unary gRPC
call.
"""

import math

import numpy as np
from fuzz_requests import DATATYPES, Case, TensorSpec, Way, WireTensor, models
from fuzz_values import CHUNKS, FLOATS, INTS, PREPARED, sound_values, values
from hypothesis import strategies as st

from mixtral_serving.tensors import Array


@st.composite
def tensor(draw: st.DrawFn, spec: TensorSpec, damaged: bool) -> WireTensor:
    if spec.name == "prepared_prompt" and not damaged:
        return packed_tensor(spec, draw(PREPARED).pack())
    if spec.name == "STREAM_CHUNK" and not damaged and draw(st.booleans()):
        return packed_tensor(spec, draw(CHUNKS))
    datatype, rank = spec.datatype, len(spec.dims)
    damage = draw(st.sampled_from(["value", "value", "shape", "type", "bytes"])) if damaged else None
    batch = 1
    dims = [draw(st.integers(1, 4)) if size < 0 else size for size in spec.dims]
    if damage == "shape":
        batch = draw(st.sampled_from([0, 1, 2, 3, 64, 65, -1]))
        dims = draw(st.lists(st.sampled_from([0, 1, 2, 7, -1, 2**31, 2**62]), min_size=0, max_size=rank + 1))
    if damage == "type":
        datatype = draw(st.sampled_from(DATATYPES))
    shape = (batch, *dims)
    size = int(np.prod([min(max(d, 0), 8) for d in shape]))  # a huge shape gets less data than it says
    element = sound_values(spec) if damage is None else values(datatype, spec.name)
    made = tuple(draw(st.lists(element, min_size=min(size, 64), max_size=min(size, 64))))
    wire = WireTensor(spec.name, datatype, shape, made)
    if damage == "bytes":
        return WireTensor(spec.name, datatype, shape, made, raw=draw(damaged_bytes(wire.to_bytes())))
    return wire


def packed_tensor(spec: TensorSpec, packed: Array) -> WireTensor:
    return WireTensor(spec.name, spec.datatype, packed.shape, tuple(packed.reshape(-1).tolist()))


@st.composite
def damaged_bytes(draw: st.DrawFn, raw: bytes) -> bytes:
    """Too short, too long, or with a length in front that lies: BYTES tensors carry theirs inside."""
    prefix = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, len(raw), len(raw) + 1])
    ways = [
        st.just(b""),
        st.just(raw[:-1]),
        st.just(raw + b"\x00"),
        st.just(raw * 2),
        prefix.map(lambda n: n.to_bytes(4, "little") + raw[4:]),
        prefix.map(lambda n: raw + n.to_bytes(4, "little")),
        st.binary(max_size=40),
    ]
    return draw(st.one_of(ways))


PROMPT_NAMES = {
    "ensemble": ("text_input", "messages", "input_ids"),
    "unary": ("text_input", "messages", "input_ids"),
    "preprocessing": ("QUERY", "MESSAGES", "INPUT_IDS"),
}
NEEDED = {
    "ensemble": ("max_tokens",),
    "unary": ("max_tokens",),
    "preprocessing": ("REQUEST_OUTPUT_LEN",),
    "tensorrt_llm": ("input_ids",),
    "engine_info": ("echo",),
    "postprocessing": ("TOKENS_BATCH", "SEQUENCE_LENGTH"),
}
IDS = st.sampled_from(
    ["", "1", "same", "é" * 10, "x" * 5000, "<id>", "../../etc/passwd", "%s%n", "a\nb", "\x00"]
) | st.uuids().map(str)
PARAMETER_NAMES = (
    "priority",
    "timeout",
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "binary_data_output",
    "triton_enable_empty_final_response",
    "classification",
    "made_up",
    "headers",
    "",
)
PARAMETERS = st.lists(
    st.tuples(st.sampled_from(PARAMETER_NAMES), st.booleans() | INTS | st.text(max_size=5) | FLOATS), max_size=2
)


JSON_ELEMENTS = 2**24


@st.composite
def cases(draw: st.DrawFn, must: tuple[str, str] | None = None) -> Case:
    """must: a model and one of its tensors, which may be damaged and is there."""
    model = models()[must[0] if must else draw(st.sampled_from(sorted(models())))]
    ways: list[Way] = ["stream", "infer", "infer-binary", "generate", "generate_stream"]
    way = draw(st.sampled_from([*ways, "stream", "stream"] if model.decoupled else [*ways, "unary", "unary"]))
    specs = list(model.inputs.values())
    names = {spec.name for spec in specs if not spec.optional} | set(NEEDED.get(model.name, ()))
    if prompts := PROMPT_NAMES.get(model.name):
        names.add(draw(st.sampled_from(prompts)))
    if "stream" in model.inputs and draw(st.booleans()):
        names.add("stream")
    names |= set(draw(st.lists(st.sampled_from([spec.name for spec in specs]), max_size=3)))
    names |= {must[1]} if must else set()
    damaged = set(draw(st.lists(st.sampled_from(sorted(names)), max_size=2)))
    tensors = [draw(tensor(model.inputs[name], name in damaged)) for name in sorted(names)]
    tensors = draw(arrangement(tensors))
    if way == "infer":  # the front end believes a shape in JSON before it looks at the data
        tensors = [one for one in tensors if math.prod(max(size, 1) for size in one.shape) < JSON_ELEMENTS]
    outputs = draw(st.lists(st.sampled_from([*model.outputs, "nope", ""]), max_size=3)) if draw(st.booleans()) else []
    cancel = draw(st.sampled_from([None, None, None, 0.0, 0.01, 0.05, 0.2])) if way != "unary" else None
    http = way not in ("stream", "unary")
    return Case(
        way,
        model.name,
        tuple(tensors),
        tuple(outputs),
        draw(IDS),
        tuple(draw(PARAMETERS)),
        cancel,
        typed_contents=not http and draw(st.integers(0, 5)) == 0,
        body=draw(st.sampled_from(BODIES)) if http and draw(st.integers(0, 7)) == 0 else None,
        content_type=draw(st.sampled_from(["application/json", "application/json", "text/plain", "", "a/b; c=\xe9"])),
    )


@st.composite
def arrangement(draw: st.DrawFn, tensors: list[WireTensor]) -> list[WireTensor]:
    """The set of tensors as a whole: one missing, one twice, one unknown, another order."""
    match draw(st.sampled_from(["as it is", "as it is", "as it is", "missing", "twice", "unknown", "order"])):
        case "missing":
            return draw(st.permutations(tensors))[1:]
        case "twice" if tensors:
            return [*tensors, draw(st.sampled_from(tensors))]
        case "unknown":
            name = draw(st.sampled_from(["nope", "", "x" * 1000, "_INPUT_ID", "STREAM_ID", "\x00", "text_input/.."]))
            return [*tensors, WireTensor(name, "INT32", (1, 1), (1,))]
        case "order":
            return list(draw(st.permutations(tensors)))
    return tensors


BODIES = (
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe",
    b'{"inputs":null}',
    b'{"inputs":[null]}',
    b'{"inputs":[{"name":"text_input"}]}',
    b'{"inputs":[{"name":"text_input","shape":[1,1],"datatype":"BYTES","data":["a"]},{"name":"max_tokens","shape":[1,1],"datatype":"INT32","data":[[["a"]]]}]}',
    b'{"inputs":[{"name":"max_tokens","shape":[1,1],"datatype":"INT32","data":[99999999999999999999]}]}',
    b'{"text_input":"a","max_tokens":{"a":1}}',
    b'{"text_input":"a","max_tokens":[[1]]}',
    b'{"text_input":"a","max_tokens":1.5}',
    b'{"text_input":"a","max_tokens":"1"}',
    b'{"text_input":["a","b"],"max_tokens":2}',
    b'{"text_input":"a","max_tokens":2,"stream":true,"id":7}',
    b'{"text_input":"a","max_tokens":2,"parameters":{"temperature":"hot"}}',
    b'{"text_input":"\\ud800","max_tokens":2}',
    b'{"text_input":null,"max_tokens":null}',
    b'{"text_input":"a","text_input":"b","max_tokens":2}',
    b'{"a":' * 40 + b"1" + b"}" * 40,
)
