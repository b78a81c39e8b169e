"""What is sent: exact lengths, ordinary ids, the shared prefix, the same for a seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtral_client.bench.workload import (
    FIRST_ORDINARY_ID,
    DollyLikePrompts,
    FilePrompts,
    Lengths,
    Prompt,
    SyntheticPrompts,
)

VOCAB = 1536


def synthetic(
    inputs: str, outputs: str = "8", *, shared: float = 0.0, seed: int = 0, vocab: int = VOCAB
) -> SyntheticPrompts:
    return SyntheticPrompts(Lengths.parse(inputs), Lengths.parse(outputs), shared, seed, vocab)


def ids(prompt: Prompt) -> list[int]:
    assert prompt.input_ids is not None
    assert prompt.text is None
    return prompt.input_ids


@given(st.integers(1, 2000), st.integers(1, 500), st.floats(0, 1), st.integers(0, 10**9))
def test_lengths_are_exact(inputs: int, outputs: int, shared: float, index: int) -> None:
    prompt = synthetic(str(inputs), str(outputs), shared=shared).prompt(index)
    assert (len(ids(prompt)), prompt.max_tokens) == (inputs, outputs)


def test_a_range_is_drawn_evenly_with_both_ends() -> None:
    source = synthetic("3-6", "1-2")
    lengths = [len(ids(source.prompt(index))) for index in range(2000)]
    assert sorted(set(lengths)) == [3, 4, 5, 6]
    assert np.bincount(lengths)[3:].min() > 400
    assert {source.prompt(index).max_tokens for index in range(50)} == {1, 2}


@pytest.mark.parametrize("vocab", [VOCAB, 32000, 300, 4])
def test_ids_are_in_the_vocabulary_and_not_special(vocab: int) -> None:
    drawn = set(ids(synthetic("500", vocab=vocab).prompt(1)))
    assert max(drawn) < vocab
    assert min(drawn) >= (FIRST_ORDINARY_ID if vocab >= VOCAB else 3)


@given(st.floats(0, 1), st.integers(1, 300), st.integers(1, 300))
def test_the_shared_share_is_the_same_in_all_prompts_and_the_rest_is_not(share: float, first: int, second: int) -> None:
    one, other = (ids(synthetic(str(n), shared=share).prompt(index)) for index, n in enumerate((first, second)))
    common = min(int(share * first), int(share * second))
    assert one[:common] == other[:common]
    if len(one) - common > 8 and len(other) - common > 8:
        assert one[common:] != other[common:]


def test_a_seed_gives_the_same_prompts_whoever_asks_for_them() -> None:
    source, again = synthetic("10-90", "1-9", seed=5), synthetic("10-90", "1-9", seed=5)
    assert [source.prompt(i) for i in range(20)] == [again.prompt(i) for i in reversed(range(20))][::-1]
    assert source.prompt(0) != synthetic("10-90", "1-9", seed=6).prompt(0)


@pytest.mark.parametrize("text", ["0", "-5", "9-3", "a", "1-", "", "1.5"])
def test_lengths_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must run|not a length"):
        Lengths.parse(text)


def test_dolly_like_lengths_are_short_with_a_long_tail_and_bounded() -> None:
    source = DollyLikePrompts(0.0, 0, VOCAB)
    prompts = [source.prompt(index) for index in range(3000)]
    inputs = np.array([len(ids(prompt)) for prompt in prompts])
    outputs = np.array([prompt.max_tokens for prompt in prompts])
    assert 14 < np.median(inputs) < 40
    assert np.percentile(inputs, 90) > 150
    assert (inputs.max(), outputs.max()) <= source.longest()
    assert outputs.mean() == pytest.approx(source.MEAN_OUTPUT, rel=0.1)
    shorter = DollyLikePrompts(0.0, 0, VOCAB, scale=0.25)
    assert shorter.longest() == (256, 128)
    assert max(len(ids(shorter.prompt(index))) for index in range(500)) <= 256


def test_texts_of_a_file_come_once_each_before_any_comes_again() -> None:
    texts = [f"text {n}" for n in range(10)]
    source = FilePrompts(texts, Lengths(7, 7), seed=3)
    rounds = [[source.prompt(index).text for index in range(start, start + 10)] for start in (0, 10)]
    assert sorted(map(str, rounds[0])) == sorted(map(str, rounds[1])) == sorted(texts)
    assert rounds[0] != rounds[1] != texts
    assert source.prompt(0).max_tokens == 7


def test_every_process_draws_the_same() -> None:
    """Several processes divide one workload, so nothing may depend on the process, such as Python's random hashes."""
    assert ids(synthetic("4", seed=1).prompt(2)) == [1080, 831, 1457, 809]
