"""Every request field of the gateway decides something on the real engine: its test fails when it is ignored."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from gateway_process import gateway_process
from openai.types import CompletionChoice
from system_server import Server

STORY = "Once upon a time"
CHAT: list[Any] = [{"role": "user", "content": "My name is Zorin. What is my name?"}]
END = 2  # the end token's id
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
WILD: dict[str, Any] = {"temperature": 2, "max_tokens": 24}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with (
        gateway_process(server.grpc_url) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=60) as opened,
    ):
        yield opened


class Asker:
    """Streamed completions of the story."""

    def __init__(self, client: openai.OpenAI) -> None:
        self._client = client

    def choices(self, prompt: Any = STORY, **fields: Any) -> list[CompletionChoice]:
        """The pieces of each choice put together."""
        extra = {name: fields.pop(name) for name in tuple(fields) if name in OURS}
        found: dict[int, CompletionChoice] = {}
        for event in self._client.completions.create(
            model="mixtral", prompt=prompt, extra_body=extra, stream=True, **fields
        ):
            for piece in event.choices:
                joined = found.setdefault(piece.index, piece)
                if joined is not piece:
                    joined.text += piece.text
                    joined.finish_reason = piece.finish_reason or joined.finish_reason
                    if joined.logprobs and piece.logprobs:
                        joined.logprobs.tokens = [*(joined.logprobs.tokens or []), *(piece.logprobs.tokens or [])]
        return [found[index] for index in sorted(found)]

    def text(self, **fields: Any) -> str:
        (choice,) = self.choices(**fields)
        return choice.text

    def tokens(self, **fields: Any) -> list[str]:
        (choice,) = self.choices(**fields, logprobs=0)
        assert choice.logprobs is not None
        return choice.logprobs.tokens or []


OURS = ("top_k", "min_p", "repetition_penalty", "ignore_eos", "min_tokens", "bad_words")


@pytest.fixture
def ask(client: openai.OpenAI) -> Asker:
    return Asker(client)


@pytest.mark.parametrize("narrow", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}], ids=str)
def test_a_filter_that_leaves_one_token_makes_the_wildest_sampling_greedy(ask: Asker, narrow: dict[str, Any]) -> None:
    """Few tokens: later on two are equally likely, and min_p keeps both."""
    greedy, sampled = ask.text(**GREEDY | {"max_tokens": 4}), WILD | {"max_tokens": 4, "seed": 1}
    assert ask.text(**sampled) != greedy
    assert ask.text(**sampled | narrow) == greedy


def test_a_seed_repeats_the_text_and_another_does_not(ask: Asker) -> None:
    first = ask.text(**WILD, seed=1)
    assert ask.text(**WILD, seed=1) == first
    assert ask.text(**WILD, seed=2) != first


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_penalties_make_tokens_come_again_less_often(ask: Asker, name: str) -> None:
    plain, spread = (ask.tokens(**GREEDY, ignore_eos=True, **{name: penalty}) for penalty in (0, 2))
    assert len(set(spread)) > len(set(plain))


def test_a_repetition_penalty_spreads_the_tokens(ask: Asker) -> None:
    plain, spread = (ask.tokens(**GREEDY, ignore_eos=True, repetition_penalty=penalty) for penalty in (1, 100))
    assert len(set(spread)) > len(set(plain))


def test_a_frequency_penalty_grows_with_each_time_and_a_presence_penalty_does_not(ask: Asker) -> None:
    """One token is pushed by 20: 2 a time keep it from coming again after about ten times, 2 once do not."""
    pushed: dict[str, Any] = {"logit_bias": {"300": 20}, "ignore_eos": True, **GREEDY}
    (token,) = set(ask.tokens(**pushed))
    assert ask.tokens(**pushed, presence_penalty=2) == [token] * 24
    assert 1 <= ask.tokens(**pushed, frequency_penalty=2).count(token) <= 16


def test_a_logit_bias_forces_and_bans(ask: Asker, server: Server) -> None:
    first = server.ask(text_input=STORY, max_tokens=1, return_output_ids=True).values("output_ids")[0]
    (token,) = set(ask.tokens(**GREEDY, logit_bias={str(first): 100}))
    assert token == ask.tokens(**GREEDY)[0]
    assert token not in ask.tokens(**GREEDY, logit_bias={str(first): -100})


def test_min_tokens_holds_the_end_back(ask: Asker) -> None:
    bias = {str(END): 100}
    assert ask.tokens(**GREEDY, logit_bias=bias) == []
    assert len(ask.tokens(**GREEDY, logit_bias=bias, min_tokens=7)) == 7


def test_ignore_eos_goes_on_to_max_tokens(ask: Asker) -> None:
    bias = {str(END): 100}
    (choice,) = ask.choices(**GREEDY, logit_bias=bias, ignore_eos=True, logprobs=0)
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert len(choice.logprobs.tokens or []) == 24


def test_bad_words_are_not_written(ask: Asker) -> None:
    plain = ask.text(**GREEDY)
    (common, _), *_ = Counter(word for word in plain.split() if word.isalpha()).most_common()
    text = ask.text(**GREEDY, bad_words=[common])
    assert len(text) > 20
    assert common not in text.split()


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_a_stop_string_ends_and_is_cut(ask: Asker, several: bool) -> None:
    plain = ask.text(**GREEDY)
    stop = plain[30:36]
    (choice,) = ask.choices(**GREEDY, stop=["never-there", stop] if several else stop)
    assert (choice.text, choice.finish_reason) == (plain[: plain.index(stop)], "stop")


def test_max_tokens_is_exact(ask: Asker) -> None:
    assert [len(ask.tokens(temperature=0, max_tokens=n, ignore_eos=True)) for n in (1, 2, 9)] == [1, 2, 9]


def test_several_prompts_and_n_are_choices_in_order(ask: Asker) -> None:
    texts = [STORY, "The king was very sad because"]
    alone = [ask.text(prompt=text, **GREEDY) for text in texts]
    together = ask.choices(prompt=texts, n=2, **GREEDY)
    assert [choice.index for choice in together] == [0, 1, 2, 3]
    assert [choice.text for choice in together] == [alone[0], alone[0], alone[1], alone[1]]
    sampled = {choice.text for choice in ask.choices(n=3, seed=1, **WILD)}
    assert len(sampled) == 3


def test_token_ids_are_the_text_that_they_spell(ask: Asker, client: openai.OpenAI, demo_tokens: list[int]) -> None:
    assert ask.text(prompt=demo_tokens, **GREEDY) == ask.text(**GREEDY)
    assert len(ask.choices(prompt=[demo_tokens, demo_tokens[:-1]], **GREEDY)) == 2
    with pytest.raises(openai.BadRequestError) as error:
        ask.choices(prompt=[10**6], **GREEDY)
    assert error.value.param == "prompt"


@pytest.fixture
def demo_tokens(demo_model: Any) -> list[int]:
    from mixtral_serving.prompt import PromptBuilder

    return list(PromptBuilder.load(demo_model).from_text(STORY).ids)


def test_echo_puts_the_prompt_in_front(ask: Asker) -> None:
    assert ask.text(**GREEDY, echo=True) == STORY + ask.text(**GREEDY)
    assert ask.text(temperature=0, max_tokens=0, echo=True, logprobs=0) == STORY


def test_alternatives_are_as_many_as_asked_for(client: openai.OpenAI) -> None:
    for count in (1, 5):
        answer = client.completions.create(model="mixtral", prompt=STORY, logprobs=count, **GREEDY | {"max_tokens": 3})
        log_probs = answer.choices[0].logprobs
        assert log_probs is not None
        assert [len(top) for top in log_probs.top_logprobs or []] == [count] * 3
        chat = client.chat.completions.create(
            model="mixtral", messages=CHAT, logprobs=True, top_logprobs=count, **GREEDY | {"max_tokens": 3}
        ).choices[0]
        assert chat.logprobs is not None
        assert [len(token.top_logprobs) for token in chat.logprobs.content or []] == [count] * 3


@pytest.mark.parametrize("n", [1, 2])
def test_usage_ends_a_stream_that_asks_for_it_and_no_other(client: openai.OpenAI, n: int) -> None:
    request: Any = {"model": "mixtral", "messages": CHAT, "n": n, "stream": True, **GREEDY}
    whole = client.chat.completions.create(**request | {"stream": False})
    *events, last = client.chat.completions.create(**request, stream_options={"include_usage": True})
    assert (last.choices, last.usage) == ([], whole.usage)
    assert all(event.usage is None for event in events)
    assert all(event.choices for event in client.chat.completions.create(**request))


def test_a_chat_takes_the_same_fields(client: openai.OpenAI) -> None:
    """The endpoints share their code from here on, so one field of each kind shows that."""

    def chat(**fields: Any) -> str:
        answer = client.chat.completions.create(model="mixtral", messages=CHAT, **fields)
        return answer.choices[0].message.content or ""

    plain = chat(**GREEDY)
    assert chat(temperature=0, max_completion_tokens=2) == chat(temperature=0, max_tokens=2) != plain
    assert chat(**WILD, seed=1, extra_body={"top_k": 1}) == plain
    assert chat(**GREEDY, stop="Zorin") == plain[: plain.index("Zorin")]
    assert chat(**GREEDY, logit_bias={"300": 100}) != plain
    assert "name" not in chat(**GREEDY, extra_body={"bad_words": ["name"]}).split()
