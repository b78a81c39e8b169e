"""What `preprocessing` does: text, messages or ids in, the engine's inputs and the stream's context out."""

import numpy as np

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.detokenizer import MAX_STOPS
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
}
PROMPTS = ("text_input", "messages", "input_ids")
UNSUPPORTED = ("decoder_text_input", "embedding_bias_words", "embedding_bias_weights", "prompt_table_extra_id")


def preprocess(builder: PromptBuilder, model_inputs: Tensors) -> dict[str, Array]:
    """The output tensors of `preprocessing`. Raises InvalidArgument before any model work."""
    inputs = model_inputs.renamed(lambda name: CLIENT_NAMES.get(name, name.lower()))
    for name in UNSUPPORTED:
        array = inputs.array(name)
        if array is not None and any(value not in (b"", 0) for value in array.reshape(-1).tolist()):
            raise InvalidArgument(f"{name} was given, this server does not support it")
    prompt = build_prompt(builder, inputs)
    stops = [stop for stop in inputs.texts("stop_words") if stop]
    if len(stops) > MAX_STOPS:
        raise InvalidArgument(f"there are {len(stops)} stop words, the limit is {MAX_STOPS}")
    context = StreamContext(
        prompt_tail=prompt.ids[-_TAIL_TOKENS:],
        stops=stops,
        prompt_text=None if inputs.flag("exclude_input_in_output", True) else prompt.text,
        strip_space=prompt.strip_space,
        return_output_ids=inputs.flag("return_output_ids"),
        return_num_output_tokens=inputs.flag("return_num_output_tokens"),
    )
    outputs = {
        "INPUT_ID": np.array([prompt.ids], np.int32),
        "REQUEST_INPUT_LEN": np.array([[len(prompt.ids)]], np.int32),
        "REQUEST_OUTPUT_LEN": np.array([[inputs.required("max_tokens")]], np.int32),
        "STREAM_CONTEXT": context.pack(),
    }
    # A tensor that says nothing is left out: each costs the time to the first token some 20 microseconds.
    for name, words in (("STOP_WORDS_IDS", stops), ("BAD_WORDS_IDS", inputs.texts("bad_words"))):
        if words:
            outputs[name] = pack_words(builder.encode_words(words))
    for name in ("end_id", "pad_id"):
        if (value := inputs.one(name, -1)) >= 0:
            outputs[f"OUT_{name.upper()}"] = np.array([[value]], np.int32)
    return outputs


def build_prompt(builder: PromptBuilder, inputs: Tensors) -> Prompt:
    """Exactly one of text_input, messages and input_ids makes the prompt."""
    given = [name for name in PROMPTS if name in inputs]
    if len(given) != 1:
        which = " and ".join(given) or "none"
        raise InvalidArgument(f"one of {', '.join(PROMPTS)} must be given, {which} was")
    if (ids := inputs.ids("input_ids")) is not None:
        return builder.from_ids(ids)
    if (messages := inputs.text("messages")) is not None:
        return builder.from_messages(messages)
    return builder.from_text(inputs.text("text_input") or "")
