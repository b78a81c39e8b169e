"""Bad words and biases as a client says them become token sequences and one bias per token."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.prepared_prompt import PreparedPrompt
from mixtral_serving.preprocessor import CLIENT_NAMES, preprocess
from mixtral_serving.prompt import PromptBuilder
from mixtral_serving.stream_context import StreamContext
from mixtral_serving.tensors import Array, Tensors, unpack_words

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
NVIDIA_OUTPUTS = (
    "INPUT_ID",
    "REQUEST_INPUT_LEN",
    "REQUEST_OUTPUT_LEN",
    "STOP_WORDS_IDS",
    "BAD_WORDS_IDS",
    "EMBEDDING_BIAS",
    "OUT_END_ID",
    "OUT_PAD_ID",
)
ENSEMBLE_OUTPUTS = ("PREPARED_PROMPT",)


def prepared(
    builder: PromptBuilder, wanted: tuple[str, ...] = (*NVIDIA_OUTPUTS, *ENSEMBLE_OUTPUTS), **inputs: Any
) -> dict[str, Array]:
    values = {"QUERY": [b"Once"], "REQUEST_OUTPUT_LEN": np.array([8], np.int32)} | inputs
    tensors = Tensors({name: np.array([value]) for name, value in values.items()})
    return preprocess(builder, tensors, wanted)


def words(*texts: str) -> Array:
    return np.array([text.encode() for text in texts], np.object_)


def bias_of(outputs: dict[str, Array]) -> dict[int, float]:
    bias = outputs["EMBEDDING_BIAS"]
    assert bias.dtype == np.float32
    (ids,) = np.nonzero(bias[0])
    return dict(zip(ids.tolist(), bias[0, ids].tolist(), strict=True))


def test_the_ensemble_gets_in_one_tensor_what_others_get_in_several(builder: PromptBuilder) -> None:
    inputs = {
        "STOP_WORDS_DICT": words("end", "."),
        "BAD_WORDS_DICT": words("owl"),
        "LOGIT_BIAS_IDS": np.array([7, 9], np.int32),
        "LOGIT_BIAS_VALUES": np.array([-100.0, 0.1], np.float32),
    }
    several = prepared(builder, NVIDIA_OUTPUTS, **inputs)
    (packed,) = prepared(builder, ENSEMBLE_OUTPUTS, **inputs).values()
    one = PreparedPrompt.unpack(packed)
    assert one.token_ids == several["INPUT_ID"][0].tolist()
    assert one.stop_sequences == unpack_words("stop", several["STOP_WORDS_IDS"])
    assert one.bad_sequences == unpack_words("bad", several["BAD_WORDS_IDS"])
    assert one.logit_bias == bias_of(several)
    context = StreamContext.unpack(one.context)
    assert (context.prompt_tail, context.stops) == (one.token_ids[-4:], ["end", "."])


def test_a_bad_word_is_banned_after_a_space_and_within_a_word(builder: PromptBuilder) -> None:
    sequences = unpack_words("bad", prepared(builder, BAD_WORDS_DICT=words("owl"))["BAD_WORDS_IDS"])
    decoded = [builder.vocabulary.decode_bytes(ids) for ids in sequences]
    assert sorted(decoded) == [b" owl", b"owl"]


def test_a_spelling_is_named_once(builder: PromptBuilder) -> None:
    sequences = unpack_words("bad", prepared(builder, BAD_WORDS_DICT=words("owl", "", "owl"))["BAD_WORDS_IDS"])
    assert len(sequences) == 2


def test_words_are_biased_token_by_token_and_ids_directly(builder: PromptBuilder) -> None:
    ids = builder.encode_words(["kite"])[0]
    outputs = prepared(
        builder,
        EMBEDDING_BIAS_WORDS=words("kite", ""),
        EMBEDDING_BIAS_WEIGHTS=np.array([2.0, 9.0], np.float32),
        LOGIT_BIAS_IDS=np.array([ids[0], 7], np.int32),
        LOGIT_BIAS_VALUES=np.array([-0.5, -100.0], np.float32),
    )
    assert outputs["EMBEDDING_BIAS"].shape == (1, len(builder.vocabulary.token_bytes))
    expected = dict.fromkeys(set(ids), 0.0)
    for token in ids:
        expected[token] += 2.0
    expected[ids[0]] -= 0.5
    assert bias_of(outputs) == expected | {7: -100.0}


def test_what_says_nothing_sends_nothing(demo_builder: PromptBuilder) -> None:
    """NVIDIA's clients send empty words with zero weights."""
    outputs = prepared(
        demo_builder,
        BAD_WORDS_DICT=words(""),
        STOP_WORDS_DICT=words(""),
        EMBEDDING_BIAS_WORDS=words(""),
        EMBEDDING_BIAS_WEIGHTS=np.array([0.0], np.float32),
    )
    assert outputs.keys() == prepared(demo_builder).keys()


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        (
            {"EMBEDDING_BIAS_WORDS": words("a", "b"), "EMBEDDING_BIAS_WEIGHTS": np.array([1.0], np.float32)},
            "embedding_bias_words has 2 values and embedding_bias_weights 1, they belong together",
        ),
        ({"EMBEDDING_BIAS_WORDS": words("a")}, "embedding_bias_words has 1 values and embedding_bias_weights 0"),
        ({"LOGIT_BIAS_IDS": np.array([5], np.int32)}, "logit_bias_ids has 1 values and logit_bias_values 0"),
        (
            {"LOGIT_BIAS_IDS": np.array([-2], np.int32), "LOGIT_BIAS_VALUES": np.array([1.0], np.float32)},
            "logit_bias_ids has token id -2, ids run from 0 to",
        ),
        ({"BAD_WORDS_DICT": words(*[f"w{n}" for n in range(65)])}, "there are 65 bad words, the limit is 64"),
        ({"BAD_WORDS_DICT": np.array([b"\xff"], np.object_)}, "bad_words is not valid UTF-8"),
    ],
)
def test_what_does_not_fit_is_refused(demo_builder: PromptBuilder, inputs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        prepared(demo_builder, **inputs)


def test_every_input_of_the_model_has_the_name_that_a_client_gives_it() -> None:
    config = model_config_pb2.ModelConfig()
    text_format.Parse((REPOSITORY / "preprocessing" / "config.pbtxt").read_text(), config)
    assert CLIENT_NAMES.keys() == {tensor.name for tensor in config.input}
