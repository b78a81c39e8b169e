"""From what a client sends to the token ids that the model sees: text, chat messages or ids."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.tokenizer import Encoder, load_tokenizer
from mixtral_serving.vocabulary import Vocabulary

ROLES = ("system", "user", "assistant")


@dataclass(slots=True)
class Prompt:
    """ids: what the model sees, BOS exactly once. text: the same as text. strip_space: whether the answer begins with
    a space that is not part of it, as it does after a chat template."""

    ids: list[int]
    text: str
    strip_space: bool


class PromptBuilder:
    """One engine's tokenizer and its ways to make a prompt."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self.vocabulary = Vocabulary.of(tokenizer)
        self.end_id: int = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @classmethod
    def load(cls, tokenizer_dir: Path) -> "PromptBuilder":
        """Raises CheckpointError when there is no readable tokenizer."""
        tokenizer = load_tokenizer(tokenizer_dir)
        if tokenizer.eos_token_id is None:
            raise CheckpointError(f"the tokenizer in {tokenizer_dir} names no end-of-sequence token")
        return cls(tokenizer)

    def from_text(self, text: str) -> Prompt:
        """A text that already begins with the BOS token does not get a second one."""
        if not text:
            raise InvalidArgument("the prompt is empty, it must have at least one character")
        return Prompt(self._encoder.prompt(text), text, strip_space=False)

    def from_messages(self, messages_json: str) -> Prompt:
        """`messages_json`: a JSON list of {"role", "content"}. The chat template brings its own BOS."""
        messages = parse_messages(messages_json)
        if self.tokenizer.chat_template is None:
            raise InvalidArgument("messages were given, but this model's tokenizer has no chat template")
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise InvalidArgument(f"the chat template refuses these messages: {error}") from error
        assert isinstance(text, str)
        return Prompt(self._encoder.text(text), text, strip_space=True)

    def from_ids(self, ids: list[int]) -> Prompt:
        """A tokenised prompt is taken as it is."""
        if not ids:
            raise InvalidArgument("input_ids is empty, it must have at least one token")
        size = len(self.vocabulary.token_bytes)
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise InvalidArgument(f"input_ids has token id {wrong}, ids run from 0 to {size - 1}")
        return Prompt(ids, self.vocabulary.decode_bytes(ids).decode(errors="replace"), strip_space=False)

    def encode_words(self, words: list[str]) -> list[list[int]]:
        """Words as token lists, without special tokens; empty words are no words."""
        return [self._encoder.text(word) for word in words if word]

    def encode_bad_words(self, words: list[str]) -> list[list[int]]:
        """Each word as it is spelled after a space and where it goes on with a word or a line; the same once."""
        head = self._encoder.text("\n")
        spellings = []
        for word in filter(None, words):
            spellings.append(self._encoder.text(word))
            joined = self._encoder.text(f"\n{word}")
            if joined[: len(head)] == head:
                spellings.append(joined[len(head) :])
        return [list(ids) for ids in dict.fromkeys(map(tuple, spellings))]


def parse_messages(messages_json: str) -> list[dict[str, str]]:
    """Raises InvalidArgument naming the message and what is wrong with it."""
    try:
        messages: Any = json.loads(messages_json)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"messages is not JSON: {error}") from error
    if not isinstance(messages, list) or not messages:
        raise InvalidArgument("messages must be a JSON list of at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise InvalidArgument(f'messages[{index}] must be an object with "role" and "content" and nothing else')
        if message["role"] not in ROLES:
            raise InvalidArgument(
                f"messages[{index}] has role {message['role']!r}, it must be one of {', '.join(ROLES)}"
            )
        if not isinstance(message["content"], str):
            raise InvalidArgument(f"messages[{index}] has content that is not a string")
    if messages[-1]["role"] != "user":
        raise InvalidArgument(f"the last message has role {messages[-1]['role']!r}, it must be 'user'")
    return messages


def decode_utf8(name: str, value: bytes) -> str:
    """A client's bytes as text. Raises InvalidArgument where they are not UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{name} is not valid UTF-8 at byte {error.start}") from error
