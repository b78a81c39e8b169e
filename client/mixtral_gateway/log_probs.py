"""Log probabilities as OpenAI writes them, in its two forms."""

from collections.abc import Sequence
from typing import Any

from mixtral_client import Chunk
from mixtral_gateway.backend import Vocabulary


def chat_log_probs(chunk: Chunk, vocabulary: Vocabulary) -> dict[str, Any]:
    """Of /v1/chat/completions, for the tokens of one chunk."""
    content = []
    for position, (index, log_prob) in enumerate(zip(chunk.token_ids, chunk.log_probs, strict=False)):
        top = chunk.top_log_probs[position] if chunk.top_log_probs else []
        content.append(
            _chat_token(vocabulary.token(index), log_prob)
            | {"top_logprobs": [_chat_token(vocabulary.token(other), value) for other, value in top]}
        )
    return {"content": content, "refusal": None}


def _chat_token(token: bytes, log_prob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "bytes": list(token), "logprob": log_prob}


class CompletionLogProbs:
    """Of /v1/completions, for one choice: positions in the text go on from chunk to chunk.

    Of a prompt's tokens the server knows only their own log probabilities, so at these positions `top_logprobs` has
    the token alone. Special tokens stand in `tokens` by name and have no length in the text.
    """

    def __init__(self, vocabulary: Vocabulary, prompt_ids: Sequence[int] | None, alternatives: int) -> None:
        """prompt_ids: of an echoed prompt."""
        self._vocabulary = vocabulary
        self._prompt_ids = prompt_ids
        self._alternatives = alternatives
        self._offset = 0
        # The text of a prompt lacks the space that the tokenizer puts in front of its first word.
        self._strip_space = prompt_ids is not None

    def push(self, chunk: Chunk, *, prompt_only: bool = False) -> dict[str, Any]:
        """prompt_only: the chunk's own tokens are not part of the answer."""
        answer: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        if self._prompt_ids is not None and (chunk.prompt_log_probs or len(self._prompt_ids) == 1):
            for index, value in zip(self._prompt_ids, [None, *chunk.prompt_log_probs], strict=True):
                self._add(answer, index, value, [] if value is None else [(index, value)])
            self._prompt_ids = None
        if not prompt_only:
            for position, (index, value) in enumerate(zip(chunk.token_ids, chunk.log_probs, strict=False)):
                self._add(answer, index, value, chunk.top_log_probs[position] if chunk.top_log_probs else [])
        if not self._alternatives:
            answer["top_logprobs"] = None
        return answer

    def _add(
        self, answer: dict[str, Any], index: int, log_prob: float | None, top: Sequence[tuple[int, float]]
    ) -> None:
        token = self._vocabulary.token(index)
        answer["tokens"].append(_name(token))
        answer["token_logprobs"].append(log_prob)
        names = {_name(self._vocabulary.token(other)): value for other, value in reversed(top)}
        if log_prob is not None:
            names[_name(token)] = log_prob  # OpenAI's list always has the chosen token
        answer["top_logprobs"].append(names if log_prob is not None else None)
        answer["text_offset"].append(self._offset)
        if index not in self._vocabulary.special:
            stripped = token.removeprefix(b" ") if self._strip_space else token
            self._strip_space = False
            self._offset += sum(byte & 0xC0 != 0x80 for byte in stripped)


def _name(token: bytes) -> str:
    """A part of a character is written as OpenAI writes it, for a JSON string could not hold it."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
