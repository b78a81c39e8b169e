"""What `preprocessing` does: text, messages or ids in, the engine's inputs and the stream's context out."""

import numpy as np

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.detokenizer import MAX_STOPS
from mixtral_serving.prompt import Prompt, PromptBuilder
from mixtral_serving.stream_context import StreamContext
from mixtral_serving.tensors import Array, Tensors, pack_words

_TAIL_TOKENS = 4
UNSUPPORTED = ("DECODER_QUERY", "EMBEDDING_BIAS_WORDS", "EMBEDDING_BIAS_WEIGHTS", "PROMPT_TABLE_EXTRA_ID")


def preprocess(builder: PromptBuilder, inputs: Tensors) -> dict[str, Array]:
    """The output tensors of `preprocessing`. Raises InvalidArgument before any model work."""
    for name in UNSUPPORTED:
        array = inputs.array(name)
        if array is not None and array.size > 0 and any(value not in (b"", 0) for value in array.reshape(-1).tolist()):
            raise InvalidArgument(f"{name.lower()} was given, this server does not support it")
    prompt = build_prompt(builder, inputs)
    stops = [stop for stop in inputs.texts("STOP_WORDS_DICT") if stop]
    if len(stops) > MAX_STOPS:
        raise InvalidArgument(f"there are {len(stops)} stop words, the limit is {MAX_STOPS}")
    end_id = inputs.one("END_ID", -1)
    pad_id = inputs.one("PAD_ID", -1)
    context = StreamContext(
        prompt_tail=prompt.ids[-_TAIL_TOKENS:],
        stops=stops,
        prompt_text=None if inputs.flag("EXCLUDE_INPUT_IN_OUTPUT", True) else prompt.text,
        strip_space=prompt.strip_space,
        return_output_ids=inputs.flag("RETURN_OUTPUT_IDS"),
    )
    return {
        "INPUT_ID": np.array([prompt.ids], np.int32),
        "REQUEST_INPUT_LEN": np.array([[len(prompt.ids)]], np.int32),
        "REQUEST_OUTPUT_LEN": np.array([[inputs.one("REQUEST_OUTPUT_LEN")]], np.int32),
        "STOP_WORDS_IDS": pack_words(builder.encode_words(stops)),
        "BAD_WORDS_IDS": pack_words(builder.encode_words(inputs.texts("BAD_WORDS_DICT"))),
        "OUT_END_ID": np.array([[builder.end_id if end_id < 0 else end_id]], np.int32),
        "OUT_PAD_ID": np.array([[builder.pad_id if pad_id < 0 else pad_id]], np.int32),
        "STREAM_CONTEXT": np.array([[context.pack()]], np.object_),
    }


def build_prompt(builder: PromptBuilder, inputs: Tensors) -> Prompt:
    """Exactly one of QUERY, MESSAGES and INPUT_IDS makes the prompt."""
    client_names = {"QUERY": "text_input", "MESSAGES": "messages", "INPUT_IDS": "input_ids"}
    given = [client for name, client in client_names.items() if name in inputs]
    if len(given) != 1:
        count = "none" if not given else " and ".join(given)
        raise InvalidArgument(f"one of text_input, messages and input_ids must be given, {count} was")
    if (ids := inputs.ids("INPUT_IDS")) is not None:
        return builder.from_ids(ids)
    if (messages := inputs.text("MESSAGES")) is not None:
        return builder.from_messages(messages)
    return builder.from_text(inputs.text("QUERY") or "")
