"""Prompts from text, chat messages and ids; chat prompts equal those of mistral-common."""

import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_serving.prompt import PromptBuilder, decode_utf8, parse_messages

MISTRAL = MistralTokenizer.v1()
# mistral-common strips messages; text that spells a control token is encoded as text there and as the token by
# Hugging Face's tokenizers, so neither occurs here.
CONTENT = st.text(min_size=1, max_size=30).map(str.strip).filter(lambda text: text and "<" not in text)


def conversation(contents: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


@settings(max_examples=150, deadline=None)
@given(st.lists(CONTENT, min_size=1, max_size=5).filter(lambda contents: len(contents) % 2 == 1))
def test_chat_prompts_equal_those_of_mistral_common(mixtral_builder: PromptBuilder, contents: list[str]) -> None:
    messages = conversation(contents)
    typed = [(UserMessage if m["role"] == "user" else AssistantMessage)(content=m["content"]) for m in messages]
    expected = MISTRAL.encode_chat_completion(ChatCompletionRequest(messages=typed)).tokens
    assert mixtral_builder.from_messages(json.dumps(messages)).ids == expected


def test_text_begins_with_one_bos(builder: PromptBuilder) -> None:
    bos = builder.tokenizer.bos_token_id
    for text in ("Once upon a time", "<s>Once upon a time", "<s>[INST] Hi [/INST]"):
        ids = builder.from_text(text).ids
        assert ids[0] == bos
        assert ids.count(bos) == 1


def test_chat_begins_with_one_bos(builder: PromptBuilder) -> None:
    ids = builder.from_messages('[{"role": "user", "content": "Hi"}]').ids
    assert ids.count(builder.tokenizer.bos_token_id) == 1
    assert ids[0] == builder.tokenizer.bos_token_id


def test_ids_are_taken_as_they_are(mixtral_builder: PromptBuilder) -> None:
    prompt = mixtral_builder.from_ids([1, 22557, 1526])
    assert prompt.ids == [1, 22557, 1526]
    assert prompt.text == " Hello world"


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ("not json", "messages is not JSON"),
        ("[" * 100_000, "messages is not JSON"),
        ("{}", "a JSON list of at least one message"),
        ("[]", "a JSON list of at least one message"),
        ('["hi"]', r'messages\[0\] must be an object with "role" and "content"'),
        ('[{"role": "user"}]', r'messages\[0\] must be an object with "role" and "content"'),
        ('[{"role": "user", "content": "a", "name": "b"}]', "and nothing else"),
        ('[{"role": "robot", "content": "a"}]', r"messages\[0\] has role 'robot', it must be one of system, user"),
        ('[{"role": "user", "content": 5}]', r"messages\[0\] has content that is not a string"),
        ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', "the last message has role"),
    ],
)
def test_malformed_messages_are_refused(messages: str, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        parse_messages(messages)


def test_roles_that_do_not_alternate_are_refused(builder: PromptBuilder) -> None:
    twice = json.dumps([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    with pytest.raises(InvalidArgument, match=r"the chat template refuses these messages: .*alternate"):
        builder.from_messages(twice)


def test_empty_prompts_and_wrong_ids_are_refused(mixtral_builder: PromptBuilder) -> None:
    with pytest.raises(InvalidArgument, match="the prompt is empty"):
        mixtral_builder.from_text("")
    with pytest.raises(InvalidArgument, match="input_ids is empty"):
        mixtral_builder.from_ids([])
    with pytest.raises(InvalidArgument, match="token id 32000, ids run from 0 to 31999"):
        mixtral_builder.from_ids([1, 32000])
    with pytest.raises(InvalidArgument, match="text_input is not valid UTF-8 at byte 2"):
        decode_utf8("text_input", b"ab\xff")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no tokenizer folder"):
        PromptBuilder.load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        PromptBuilder.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        PromptBuilder.load(tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.text(min_size=1, max_size=30).filter(lambda text: "<" not in text and not text.startswith(" ")))
def test_text_prompts_equal_those_of_sentencepiece(
    mixtral_builder: PromptBuilder, mixtral_sentencepiece: Path, text: str
) -> None:
    pieces = sentencepiece.SentencePieceProcessor(str(mixtral_sentencepiece))
    assert mixtral_builder.from_text(text).ids == [pieces.bos_id(), *pieces.encode(text)]
