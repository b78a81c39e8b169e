"""What a caller asks for and what comes back: plain data, no protocol."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict


class Message(TypedDict):
    """One turn of a conversation. role: "user" or "assistant" (Mixtral's template knows no other)."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How to generate. Fields bear the names of the server's tensors; None leaves the server's default.

    Sampling: with nothing given, with temperature 0, or with top_k 1 the most likely token is taken every time
    (greedy). Any other temperature, top_k, top_p or min_p samples. The server checks all ranges and names the limit.

    max_tokens: the most tokens to generate. stop_words: strings that end the text, they are not part of it.
    temperature: 0 to 100. top_k: keep the k most likely tokens, 0 keeps all. top_p: keep the smallest set of tokens
    whose probability reaches p, above 0 to 1. min_p: drop tokens less likely than min_p times the likeliest, 0 to 1.
    repetition_penalty: above 1 makes tokens of prompt and output less likely.
    presence_penalty, frequency_penalty: what is taken from the logit of a token that occurs in the output, once and for
    each time. logit_bias: pairs of a token id and what is added to its logit; -100 bans, 100 forces. min_tokens: no end
    token before so many tokens, stop words end all the same. bad_words: strings whose tokens are never generated in
    this order. seed: the same seed, the same text.
    exclude_input_in_output: False makes the text begin with the prompt. ignore_eos: go on past the end token.
    timeout_ms: deadline from arrival on the server; a generation cut by it has the finish reason "timeout".
    stream_interval: tokens per response after the first, at least 1, at most 1024; more means fewer responses.
    return_output_ids: fill `token_ids`. return_log_probs: fill `log_probs` (natural logarithm, before temperature and
    filters) and `cum_log_prob`. return_prompt_log_probs: fill `prompt_log_probs`. top_log_probs: fill `top_log_probs`
    with this many alternatives per position, 1 to 20; needs return_log_probs.
    stream: False asks for a single response at the end. It is then also the first one, so the idle timeout must be
    longer than the whole generation, and the server notices neither a cancel nor a lost client before the end.
    """

    max_tokens: int = 256
    stop_words: tuple[str, ...] = ()
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int | None = None
    bad_words: tuple[str, ...] = ()
    seed: int | None = None
    exclude_input_in_output: bool | None = None
    ignore_eos: bool | None = None
    timeout_ms: int | None = None
    stream_interval: int | None = None
    return_output_ids: bool = False
    return_log_probs: bool = False
    return_prompt_log_probs: bool = False
    top_log_probs: int | None = None
    stream: bool = True


class TokenLogProb(NamedTuple):
    """One alternative at one position."""

    token_id: int
    log_prob: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts and times of one finished request, times in seconds as this client saw them.

    num_input_tokens, num_output_tokens: as the server counted, None if it did not say.
    ttft_s: time to first token, from sending the request to the first response with text or tokens; None without any.
    tpot_s: time per output token, the mean gap between later tokens: from the first such response to the last, over the
    tokens after the first response (one response may bring several). None if all came at once.
    total_s: from sending to the final response.
    """

    num_input_tokens: int | None
    num_output_tokens: int | None
    ttft_s: float | None
    tpot_s: float | None
    total_s: float

    @property
    def tokens_per_s(self) -> float | None:
        """Perceived speed: tokens per second once the first has come, the inverse of `tpot_s`."""
        return None if self.tpot_s is None else 1 / self.tpot_s

    def to_json(self) -> dict[str, Any]:
        return {
            "num_input_tokens": self.num_input_tokens,
            "num_output_tokens": self.num_output_tokens,
            "ttft_s": self.ttft_s,
            "tpot_s": self.tpot_s,
            "tokens_per_s": self.tokens_per_s,
            "total_s": self.total_s,
        }


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one response brought. The texts of all chunks of a request, concatenated, are its text.

    The last chunk, and only it, has `usage`, and `finish_reason` (stop, length, cancelled, timeout or error) unless the
    server gave none; its text may be empty. Lists are empty where nothing was asked for. log_probs and top_log_probs
    belong to `token_ids` position by position; a chunk may hold several tokens or, while the server holds back an
    unfinished character or a possible stop string, tokens and no text. prompt_log_probs come once, one for every prompt
    token but the first. cum_log_prob: sum over the output so far.
    """

    request_id: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    cum_log_prob: float | None = None
    top_log_probs: list[list[TokenLogProb]] = field(default_factory=list)
    prompt_log_probs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A whole generation: the fields of `Chunk`, joined."""

    request_id: str
    text: str
    finish_reason: str | None
    usage: Usage
    token_ids: list[int]
    log_probs: list[float]
    cum_log_prob: float | None
    top_log_probs: list[list[TokenLogProb]]
    prompt_log_probs: list[float]

    @classmethod
    def join(cls, chunks: Iterable[Chunk]) -> "Result":
        """Joins all chunks of one request, the last of which has the usage. Raises ValueError if it has not."""
        parts = list(chunks)
        if not parts or (usage := parts[-1].usage) is None:
            raise ValueError("the last chunk has no usage: the generation is not complete")
        return cls(
            request_id=parts[-1].request_id,
            text="".join(part.text for part in parts),
            finish_reason=parts[-1].finish_reason,
            usage=usage,
            token_ids=[token_id for part in parts for token_id in part.token_ids],
            log_probs=[log_prob for part in parts for log_prob in part.log_probs],
            cum_log_prob=next((part.cum_log_prob for part in reversed(parts) if part.cum_log_prob is not None), None),
            top_log_probs=[position for part in parts for position in part.top_log_probs],
            prompt_log_probs=[log_prob for part in parts for log_prob in part.prompt_log_probs],
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object. Ids and log probabilities are in it only when they were asked for."""
        extras: dict[str, Any] = {
            "token_ids": self.token_ids,
            "log_probs": self.log_probs,
            "cum_log_prob": self.cum_log_prob,
            "top_log_probs": [[alternative._asdict() for alternative in at] for at in self.top_log_probs],
            "prompt_log_probs": self.prompt_log_probs,
        }
        return {
            "request_id": self.request_id,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": self.usage.to_json(),
            **{name: value for name, value in extras.items() if value not in (None, [])},
        }
