"""What may stand in a tensor: values of each type that are sound, odd or wrong, and those that a name asks for.

Lengths of answers are small or refused, so that a silent server is one that hangs; everything else may be anything.
"""

from typing import Any

from fuzz_requests import TensorSpec
from hypothesis import strategies as st

from mixtral_serving.prepared_prompt import PreparedPrompt
from mixtral_serving.stream_chunk import ChunkExtras, pack_chunk

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
    pack_chunk,
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
# What preprocessing could make of a prompt, or a client that knows the form.
PREPARED = st.builds(
    PreparedPrompt,
    token_ids=st.lists(st.integers(-1, 1600), max_size=4),
    context=st.sampled_from(CONTEXTS).filter(lambda context: b"\n" not in context),
    stop_sequences=st.just([]) | st.lists(st.lists(st.integers(-1, 1600), max_size=2), max_size=3),
    bad_sequences=st.just([]) | st.lists(st.lists(st.integers(-1, 1600), max_size=2), max_size=3),
    logit_bias=st.just({}) | st.dictionaries(st.integers(-1, 1600), FLOATS, max_size=3),
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
