"""What `preprocessing` does: text, messages or ids in, the engine's inputs and the stream's context out."""

from collections.abc import Container, Sized

import numpy as np

from mixtral_runtime.engine import MAX_BAD_SEQUENCES
from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.detokenizer import MAX_STOPS
from mixtral_serving.engine_request import logit_bias
from mixtral_serving.prepared_prompt import PreparedPrompt
from mixtral_serving.prompt import Prompt, PromptBuilder
from mixtral_serving.stream_context import StreamContext
from mixtral_serving.tensors import Array, Tensors, pack_words

_TAIL_TOKENS = 4
# This model's input names are NVIDIA's; errors must name what the client of the ensemble sent.
CLIENT_NAMES = {
    "QUERY": "text_input",
    "MESSAGES": "messages",
    "INPUT_IDS": "input_ids",
    "REQUEST_OUTPUT_LEN": "max_tokens",
    "STOP_WORDS_DICT": "stop_words",
    "BAD_WORDS_DICT": "bad_words",
    "DECODER_QUERY": "decoder_text_input",
} | {
    name: name.lower()
    for name in (
        "EMBEDDING_BIAS_WORDS",
        "EMBEDDING_BIAS_WEIGHTS",
        "LOGIT_BIAS_IDS",
        "LOGIT_BIAS_VALUES",
        "END_ID",
        "PAD_ID",
        "PROMPT_TABLE_EXTRA_ID",
        "EXCLUDE_INPUT_IN_OUTPUT",
        "RETURN_NUM_OUTPUT_TOKENS",
        "RETURN_OUTPUT_IDS",
    )
}
PROMPTS = ("text_input", "messages", "input_ids")
UNSUPPORTED = frozenset({"decoder_text_input", "prompt_table_extra_id"})
BIASES = frozenset({"embedding_bias_words", "embedding_bias_weights", "logit_bias_ids", "logit_bias_values"})
MAX_BAD_WORDS = MAX_BAD_SEQUENCES // 2  # each may have two spellings


def preprocess(builder: PromptBuilder, model_inputs: Tensors, wanted: Container[str]) -> dict[str, Array]:
    """Those output tensors of `preprocessing` that are wanted and say something; the ensemble wants PREPARED_PROMPT
    alone. Raises InvalidArgument before any model work."""
    inputs = model_inputs.renamed(CLIENT_NAMES)
    if inputs.has_any(UNSUPPORTED):
        _refuse_unsupported(inputs)
    prompt = build_prompt(builder, inputs)
    stops = _words(inputs, "stop_words", MAX_STOPS)
    bad_words = _words(inputs, "bad_words", MAX_BAD_WORDS)
    max_tokens = inputs.required("max_tokens")
    stop_ids = builder.encode_words(stops) if stops else []
    bad_ids = builder.encode_bad_words(bad_words) if bad_words else []
    bias = embedding_bias(builder, inputs) if inputs.has_any(BIASES) else None
    outputs: dict[str, Array] = {}
    if "PREPARED_PROMPT" in wanted:
        context = StreamContext(
            prompt_tail=prompt.ids[-_TAIL_TOKENS:],
            stops=stops,
            prompt_text=None if inputs.flag("exclude_input_in_output", True) else prompt.text,
            strip_space=prompt.strip_space,
            return_output_ids=inputs.flag("return_output_ids"),
            return_num_output_tokens=inputs.flag("return_num_output_tokens"),
        )
        biases = {} if bias is None else logit_bias(bias)
        outputs["PREPARED_PROMPT"] = PreparedPrompt(prompt.ids, context.pack(), stop_ids, bad_ids, biases).pack()
    if "INPUT_ID" in wanted:
        outputs["INPUT_ID"] = np.array([prompt.ids], np.int32)
    if "REQUEST_INPUT_LEN" in wanted:
        outputs["REQUEST_INPUT_LEN"] = np.array([[len(prompt.ids)]], np.int32)
    if "REQUEST_OUTPUT_LEN" in wanted:
        outputs["REQUEST_OUTPUT_LEN"] = np.array([[max_tokens]], np.int32)
    if stop_ids and "STOP_WORDS_IDS" in wanted:
        outputs["STOP_WORDS_IDS"] = pack_words(stop_ids)
    if bad_ids and "BAD_WORDS_IDS" in wanted:
        outputs["BAD_WORDS_IDS"] = pack_words(bad_ids)
    if bias is not None and "EMBEDDING_BIAS" in wanted:
        outputs["EMBEDDING_BIAS"] = bias[None]
    for name, output in (("end_id", "OUT_END_ID"), ("pad_id", "OUT_PAD_ID")):
        if output in wanted and (value := inputs.one(name, -1)) >= 0:
            outputs[output] = np.array([[value]], np.int32)
    return outputs


def _refuse_unsupported(inputs: Tensors) -> None:
    for name in sorted(UNSUPPORTED):
        array = inputs.array(name)
        if array is not None and any(value not in (b"", 0) for value in array.reshape(-1).tolist()):
            raise InvalidArgument(f"{name} was given, this server does not support it")


def _words(inputs: Tensors, name: str, limit: int) -> list[str]:
    if name not in inputs:
        return []
    words = [word for word in inputs.texts(name) if word]
    if len(words) > limit:
        raise InvalidArgument(f"there are {len(words)} {name.replace('_', ' ')}, the limit is {limit}")
    return words


def embedding_bias(builder: PromptBuilder, inputs: Tensors) -> Array | None:
    """FP32 [vocabulary]: what is added to each token's logit. Of a word every token gets the weight, as NVIDIA has it;
    what is said of a token several times adds up. None when no bias is given."""
    bias = np.zeros(len(builder.vocabulary.token_bytes), np.float32)
    words, weights = inputs.texts("embedding_bias_words"), inputs.numbers("embedding_bias_weights")
    _check_same_length("embedding_bias_words", words, "embedding_bias_weights", weights)
    for word, weight in zip(words, weights, strict=True):
        for ids in builder.encode_words([word]):
            np.add.at(bias, ids, weight)
    ids, values = inputs.ids("logit_bias_ids") or [], inputs.numbers("logit_bias_values")
    _check_same_length("logit_bias_ids", ids, "logit_bias_values", values)
    if (wrong := next((i for i in ids if not 0 <= i < len(bias)), None)) is not None:
        raise InvalidArgument(f"logit_bias_ids has token id {wrong}, ids run from 0 to {len(bias) - 1}")
    np.add.at(bias, ids, values)
    return bias if bias.any() else None


def _check_same_length(keys_name: str, keys: Sized, values_name: str, values: Sized) -> None:
    if len(keys) != len(values):
        raise InvalidArgument(
            f"{keys_name} has {len(keys)} values and {values_name} {len(values)}, they belong together"
        )


def build_prompt(builder: PromptBuilder, inputs: Tensors) -> Prompt:
    """Exactly one of text_input, messages and input_ids makes the prompt."""
    given = inputs.names() & PROMPTS
    if len(given) != 1:
        which = " and ".join(name for name in PROMPTS if name in given) or "none"
        raise InvalidArgument(f"one of {', '.join(PROMPTS)} must be given, {which} was")
    if "text_input" in given:
        return builder.from_text(inputs.text("text_input") or "")
    if (ids := inputs.ids("input_ids")) is not None:
        return builder.from_ids(ids)
    return builder.from_messages(inputs.text("messages") or "")
