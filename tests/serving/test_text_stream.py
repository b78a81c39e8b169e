"""The pieces of a stream join to exactly the text, however the ids are grouped, and stop strings cut it."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixtral_serving import text_stream
from mixtral_serving.prompt import PromptBuilder
from mixtral_serving.text_stream import TextStream
from mixtral_serving.vocabulary import Vocabulary

HARD_TEXTS = [
    "你好，世界。繁體字",
    "สวัสดีชาวโลก",
    "안녕하세요 세계",
    "family 👩\u200d👩\u200d👧\u200d👦 flag 🏳️\u200d🌈 skin 👍🏽",
    "  two leading spaces, and  two inside",
    "tabs\tand\nnew\r\nlines ",
    "naïve café €5 Ελληνικά Русский עברית",
    "<s> and </s> and [INST] written out",
    "a\u0301 combining, \u202eright to left\u202c, zero\u200bwidth",
]


def texts() -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from(HARD_TEXTS), st.text(max_size=40))


def cuts() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, 6), min_size=1, max_size=8)


def run(stream: TextStream, ids: list[int], sizes: list[int]) -> str:
    """Pushes ids in groups of the given sizes, over and over, then flushes."""
    pieces, start, turn = [], 0, 0
    while start < len(ids):
        size = sizes[turn % len(sizes)]
        pieces.append(stream.push(ids[start : start + size]).text)
        start, turn = start + size, turn + 1
    pieces.append(stream.push([], final=True).text)
    return "".join(pieces)


def encode(builder: PromptBuilder, text: str) -> list[int]:
    ids: list[int] = builder.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@settings(max_examples=150, deadline=None)
@given(prompt=texts(), text=texts(), sizes=cuts())
def test_pieces_join_to_the_continuation(builder: PromptBuilder, prompt: str, text: str, sizes: list[int]) -> None:
    whole = encode(builder, prompt + text)
    for cut in {0, len(whole) // 2, max(len(whole) - 3, 0)}:
        tail, output = whole[:cut], whole[cut:]
        joined = run(TextStream(builder.vocabulary, tail), output, sizes)
        before = builder.vocabulary.decode_bytes(tail)
        everything = builder.vocabulary.decode_bytes(whole)
        # What a cut inside a character leaves of it before the output belongs to the output's first character.
        unfinished = len(before) - len(before.decode(errors="ignore").encode())
        assert joined.encode() == everything[len(before) - unfinished :]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), sizes=cuts())
def test_any_ids_decode_as_sentencepiece_does(
    mixtral_builder: PromptBuilder, mixtral_sentencepiece: Path, data: st.DataObject, sizes: list[int]
) -> None:
    """Mixtral's published tokenizer is the oracle, also for bytes that are not UTF-8."""
    oracle = sentencepiece.SentencePieceProcessor(str(mixtral_sentencepiece))
    byte_ids, any_ids = st.integers(3, 258), st.integers(3, 31999)
    output = data.draw(st.lists(st.one_of(byte_ids, any_ids), max_size=12))
    tail = oracle.encode("The prompt ends here.")
    joined = run(TextStream(mixtral_builder.vocabulary, tail), output, sizes)
    assert joined == oracle.decode(tail + output).removeprefix(oracle.decode(tail))


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_no_half_character_is_ever_sent(builder: PromptBuilder, text: str) -> None:
    stream = TextStream(builder.vocabulary, [])
    for token in encode(builder, text):
        assert "\ufffd" not in stream.push([token]).text


def test_one_leading_space_is_dropped_for_chat_answers(builder: PromptBuilder) -> None:
    ids = encode(builder, "Hello there")
    assert run(TextStream(builder.vocabulary, [], strip_space=True), ids, [1]) == "Hello there"
    assert run(TextStream(builder.vocabulary, []), ids, [1]) == " Hello there"


def reference_cut(text: str, stops: list[str]) -> str:
    """The stop that ends first counts, of those that end together the longest: tried at every length of the text."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@settings(max_examples=300, deadline=None)
@given(
    text=st.one_of(st.text(alphabet="ab 你€", max_size=30), st.sampled_from(HARD_TEXTS)),
    stops=st.lists(st.text(alphabet="ab 你€,", min_size=1, max_size=4), max_size=3),
    sizes=cuts(),
)
@example(text="abcd", stops=["bc", "abcd"], sizes=[1])
@example(text="aab", stops=["ab", "aab"], sizes=[1])
def test_stop_strings_cut_the_text_across_tokens(
    builder: PromptBuilder, text: str, stops: list[str], sizes: list[int]
) -> None:
    ids = encode(builder, text)
    full = builder.vocabulary.decode_bytes(ids).decode()
    assert run(TextStream(builder.vocabulary, [], stops), ids, sizes) == reference_cut(full, stops)


@settings(max_examples=100, deadline=None)
@given(text=texts(), data=st.data(), sizes=cuts())
def test_a_stop_string_may_be_cut_out_anywhere(
    mixtral_builder: PromptBuilder, text: str, data: st.DataObject, sizes: list[int]
) -> None:
    full = " " + text
    start = data.draw(st.integers(0, len(full) - 1))
    stop = full[start : data.draw(st.integers(start + 1, len(full)))]
    stream = TextStream(mixtral_builder.vocabulary, [], [stop])
    ids = encode(mixtral_builder, text)
    if mixtral_builder.vocabulary.decode_bytes(ids).decode() != full:
        return  # the text spells a special token, which has no text of its own
    assert run(stream, ids, sizes) == reference_cut(full, [stop])
    assert stream.stopped


def test_tokens_are_counted_up_to_the_stop(mixtral_builder: PromptBuilder) -> None:
    ids = encode(mixtral_builder, "one two three four")
    stream = TextStream(mixtral_builder.vocabulary, [], ["three"])
    piece = stream.push(ids)
    assert (piece.text, piece.stopped) == (" one two ", True)
    assert mixtral_builder.vocabulary.decode_bytes(ids[: piece.tokens]).decode() == " one two three"
    assert stream.push(ids).tokens == 0


def test_held_back_text_is_flushed_at_the_end(mixtral_builder: PromptBuilder) -> None:
    stream = TextStream(mixtral_builder.vocabulary, [], ["STOP"])
    assert stream.push(encode(mixtral_builder, "full ST")).text == " full "
    assert stream.push([], final=True).text == "ST"


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="ab 你€", max_size=30),
    stops=st.lists(st.text(alphabet="ab 你€,", min_size=1, max_size=4), min_size=1, max_size=3),
    strip_space=st.booleans(),
)
def test_coalesced_calls_count_the_tokens_of_single_ones(
    builder: PromptBuilder, text: str, stops: list[str], strip_space: bool
) -> None:
    ids = encode(builder, text)
    single = TextStream(builder.vocabulary, [], stops, strip_space=strip_space)
    pieces = [single.push([token], final=index == len(ids) - 1) for index, token in enumerate(ids)]
    together = TextStream(builder.vocabulary, [], stops, strip_space=strip_space).push(ids, final=True)
    assert together.text == "".join(piece.text for piece in pieces)
    assert together.tokens == sum(piece.tokens for piece in pieces)
    assert together.stopped == single.stopped


class CountingVocabulary(Vocabulary):
    """Counts the tokens that are decoded."""

    decoded = 0

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        CountingVocabulary.decoded += len(ids)
        return super().decode_bytes(ids)


@pytest.mark.parametrize("stops", [[], ["</answer>", "\n\n", "aaaaaaaab"]])
def test_a_token_costs_the_same_however_long_the_text_is(
    mixtral_builder: PromptBuilder, stops: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token is decoded once, and no more is searched for stop strings than what is new and what is held back."""
    vocabulary = CountingVocabulary(mixtral_builder.vocabulary.token_bytes)
    stream = TextStream(vocabulary, [], stops)
    searched: list[int] = []

    def overlap(text: str, stop: str) -> int:
        searched.append(len(text))
        return real_overlap(text, stop)

    real_overlap = text_stream._overlap
    monkeypatch.setattr(text_stream, "_overlap", overlap)
    ids = encode(mixtral_builder, "some words aaaa <answer> 你好 ") * 1000
    longest_token = max(map(len, vocabulary.token_bytes))
    before = CountingVocabulary.decoded
    for token in ids:
        assert not stream.push([token]).stopped
    assert CountingVocabulary.decoded - before == len(ids)
    assert len(searched) == len(stops) * len(ids)
    assert max(searched, default=0) <= longest_token + max(map(len, stops), default=0)
