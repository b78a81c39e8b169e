"""Structured random requests to every model of the repository, made from the models' own config.pbtxt.

A request begins as a sound one, so that it comes far, and is then damaged: wrong types, shapes, values, bytes,
parameters. Answers are kept short, so that a silent server is a server that hangs. What is known to crash this Triton
itself is left out (docs/reliability.md): the metadata `triton_grpc_error`, JSON nested a hundred thousand levels deep,
cancelling a unary gRPC call.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from google.protobuf import text_format
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from mixtral_serving.stream_chunk import ChunkExtras, StreamChunk

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
NUMPY = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
DATATYPES = (*NUMPY, "BYTES", "BF16", "", "FP99")
Way = Literal["stream", "unary", "infer", "infer-binary", "generate", "generate_stream"]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as a config.pbtxt declares it; dims without the batch dimension, -1 where any size goes."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool


@dataclass(frozen=True)
class ModelSpec:
    name: str
    decoupled: bool
    inputs: dict[str, TensorSpec]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class WireTensor:
    """values: Python values, as many as the shape says or not. raw: bytes to send instead of them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: tuple[Any, ...]
    raw: bytes | None = None
    parameters: tuple[tuple[str, Any], ...] = ()

    def to_bytes(self) -> bytes:
        """What Triton's raw form holds."""
        if self.raw is not None:
            return self.raw
        if self.datatype in NUMPY:
            numbers = [value if isinstance(value, (bool, int, float)) else 0 for value in self.values]
            with np.errstate(all="ignore"):
                if NUMPY[self.datatype] is np.uint64:
                    return b"".join(
                        (int(n) % 2**64 if n == n and abs(n) != np.inf else 0).to_bytes(8, "little") for n in numbers
                    )
                return np.array(numbers, np.float64).astype(NUMPY[self.datatype]).tobytes()
        items = [value if isinstance(value, bytes) else str(value).encode() for value in self.values]
        return b"".join(len(item).to_bytes(4, "little") + item for item in items)


@dataclass(frozen=True)
class Case:
    """One request. cancel_after_s: when the client gives up. body: sent over HTTP instead of the tensors."""

    way: Way
    model: str
    tensors: tuple[WireTensor, ...] = ()
    outputs: tuple[str, ...] = ()
    request_id: str = ""
    parameters: tuple[tuple[str, Any], ...] = ()
    cancel_after_s: float | None = None
    typed_contents: bool = False
    body: bytes | None = None
    content_type: str = "application/json"


@cache
def models() -> dict[str, ModelSpec]:
    found = {}
    for path in sorted(REPOSITORY.glob("*/config.pbtxt")):
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        inputs = {i.name: TensorSpec(i.name, _datatype(i.data_type), tuple(i.dims), i.optional) for i in config.input}
        decoupled = config.model_transaction_policy.decoupled or config.platform == "ensemble"
        found[config.name] = ModelSpec(config.name, decoupled, inputs, tuple(o.name for o in config.output))
    return found


def _datatype(number: int) -> str:
    name = model_config_pb2.DataType.Name(number).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


# Values. Lengths of answers are small or refused; everything else may be anything.
LENGTHS = st.sampled_from([1, 2, 5, 8]) | st.sampled_from([0, -1, 10**6, 2**31 - 1, -(2**31)])
INTS = st.sampled_from([0, 1, -1, 2, 3, 1023, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)]) | st.integers(0, 1600)
FLOATS = st.sampled_from([0.0, 1.0, 0.7, -1.0, 2.0, 1e38, 1e-45, float("nan"), float("inf"), float("-inf")])
UINT64 = st.sampled_from([0, 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
MESSAGES = (
    b'[{"role":"user","content":"Hi"}]',
    b'[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}]',
    b'[{"role":"user","content":"Hi"},{"role":"user","content":"Hi"}]',
    b'[{"role":"user","content":{"text":"Hi"}}]',
    b'[{"role":["user"],"content":"Hi"}]',
    b'[{"role":{},"content":"Hi"}]',
    b'[{"role":"user","content":"\\ud800"}]',
    b'[{"role":"user","content":"Hi","role":"robot"}]',
    b"[null]",
    b"{}",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"[" * 5000,
    b'{"a":' * 5000,
)
CONTEXTS = (
    b'[[1,300],["x"],null,false,true]',
    b"[[],[]]",
    b'[["a"],[1],5,"x",null]',
    b"[null,null]",
    b"[[1e400],[[]]]",
    b"[1,2,3,4,5,6,7,8]",
    b'{"nope":1}',
    b"[]",
    b"5",
    b"",
    b"\xff",
)
WORDS = (b"INVALID_ARGUMENT: made up", b"stop", b"length", b"cancelled", b"error", b"made up", b"no code word")
STRINGS = st.one_of(
    st.sampled_from(
        [b"Once upon a time", b"", b"a", b" ", b"\x00", b"\xff\xfe", b"caf\xc3", b"<s></s>[INST]", b"\xed\xa0\x80"]
    ),
    st.sampled_from(MESSAGES + CONTEXTS + WORDS),
    st.text(max_size=20).map(lambda text: text.encode(errors="replace")),
    st.binary(max_size=12),
    st.sampled_from([b"word " * 4000, "é".encode() * 30000, b"x" * 100000]),
)
SOUND: dict[str, st.SearchStrategy[Any]] = {
    "text_input": st.sampled_from([b"Once upon a time", b"a", "naïve €".encode(), b"<s> The"]),
    "messages": st.sampled_from(MESSAGES[:2]),
    "max_tokens": LENGTHS,
    "input_ids": st.integers(0, 1500),
    "stop_words": st.sampled_from([b"the", b".", b" a", b"x"]),
    "temperature": st.sampled_from([0.0, 0.7, 1.0]),
    "top_k": st.sampled_from([0, 1, 40]),
    "top_p": st.sampled_from([0.0, 0.9, 1.0]),
    "min_p": st.sampled_from([0.0, 0.1]),
    "repetition_penalty": st.sampled_from([1.0, 1.2]),
    "seed": UINT64,
    "timeout_ms": st.sampled_from([1, 30, 5000]),
    "stream_interval": st.sampled_from([1, 3, 1024]),
    "top_log_probs": st.sampled_from([0, 1, 5]),
    "end_id": st.sampled_from([-1, 2, 300]),
    "stop_reason": st.sampled_from([b"cancelled", b"stop"]),
    "TOKENS_BATCH": st.integers(-1, 1600),
    "STREAM_CHUNK": st.integers(-(2**31), -(2**31) + 3) | st.integers(-1, 1600),
    "SEQUENCE_LENGTH": st.integers(-1, 4),
    "input_lengths": st.integers(-1, 4),
}
# What the engine model could send, or a client that knows the form.
CHUNKS = st.builds(
    StreamChunk,
    st.integers(0, 3),
    st.lists(st.integers(-1, 1600), max_size=4),
    st.builds(
        ChunkExtras,
        context=st.none() | st.sampled_from(CONTEXTS),
        finish_reason=st.none() | st.sampled_from(["length", "", "x" * 1000]),
        error=st.none() | st.sampled_from(["UNAVAILABLE: no", "", "INTERNAL"]),
        log_probs=st.none() | st.lists(st.floats(width=32), max_size=4),
        top_ids=st.none() | st.lists(st.lists(st.integers(-1, 1600), max_size=2), max_size=3),
        top_log_probs=st.none() | st.lists(st.lists(st.floats(width=32), max_size=2), max_size=3),
    ),
)
# The same by the names of the models inside the ensemble.
ALIASES = {
    "QUERY": "text_input",
    "MESSAGES": "messages",
    "INPUT_IDS": "input_ids",
    "REQUEST_OUTPUT_LEN": "max_tokens",
    "request_output_len": "max_tokens",
    "STOP_WORDS_DICT": "stop_words",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "END_ID": "end_id",
}
LENGTH_NAMES = ("max_tokens", "REQUEST_OUTPUT_LEN", "request_output_len")


def values(datatype: str, name: str) -> st.SearchStrategy[Any]:
    """Any value of a type. A tensor that says how long an answer is keeps it short."""
    if name in LENGTH_NAMES:
        return LENGTHS
    if datatype == "BYTES":
        return STRINGS
    if datatype == "BOOL":
        return st.booleans()
    if datatype.startswith("FP"):
        return FLOATS
    return UINT64 if datatype == "UINT64" else INTS


def sound_values(spec: TensorSpec) -> st.SearchStrategy[Any]:
    known = SOUND.get(ALIASES.get(spec.name, spec.name))
    return values(spec.datatype, spec.name) if known is None else known


@st.composite
def tensor(draw: st.DrawFn, spec: TensorSpec, damaged: bool) -> WireTensor:
    if spec.name == "stream_context" and not damaged:
        packed = draw(st.sampled_from(CONTEXTS))
        return WireTensor(spec.name, spec.datatype, (1, len(packed)), tuple(packed))
    if spec.name == "STREAM_CHUNK" and not damaged and draw(st.booleans()):
        chunk = draw(CHUNKS).pack()
        return WireTensor(spec.name, spec.datatype, chunk.shape, tuple(chunk.reshape(-1).tolist()))
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
