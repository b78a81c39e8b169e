"""What the engine has computed once it does not compute again: whose prefixes are shared, and what that is worth."""

from typing import Any

import pytest

from mixtral_runtime.engine import EngineStats, Request
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE

PROMPT = [(11 * i * i + i) % 160 for i in range(3 * BLOCK_SIZE + 5)]


def answer(engine: Any, collect: Any, prompt: list[int], **fields: Any) -> Any:
    request_id = engine.submit(Request(prompt, **{"max_tokens": 2, **fields}))
    return collect(engine, request_id)[request_id]


def blocks(stats: EngineStats) -> tuple[int, int]:
    return stats.prefix_blocks_reused, stats.prefix_blocks_missed


def test_a_prompt_that_came_before_is_read_from_the_cache(make_engine: Any, collect: Any) -> None:
    engine = make_engine()
    first = answer(engine, collect, PROMPT)
    assert blocks(engine.stats()) == (0, 3)
    assert answer(engine, collect, PROMPT).token_ids == first.token_ids
    assert blocks(engine.stats()) == (3, 3)


def test_prompts_that_begin_alike_share_the_full_blocks_of_the_beginning(make_engine: Any, collect: Any) -> None:
    engine = make_engine()
    answer(engine, collect, PROMPT)
    answer(engine, collect, PROMPT[: 2 * BLOCK_SIZE - 1] + [159] * 60)
    assert blocks(engine.stats()) == (1, 3 + 2)


def test_the_last_token_is_always_computed(make_engine: Any, collect: Any) -> None:
    """Its logits are what the first token of the answer is drawn from."""
    engine = make_engine()
    prompt = PROMPT[: 2 * BLOCK_SIZE]
    first = answer(engine, collect, prompt)
    assert answer(engine, collect, prompt).token_ids == first.token_ids
    assert blocks(engine.stats()) == (1, 2 + 1)


def test_a_conversation_goes_on_from_what_was_generated(make_engine: Any, collect: Any) -> None:
    engine = make_engine()
    said = answer(engine, collect, PROMPT[:20], max_tokens=60).token_ids
    answer(engine, collect, PROMPT[:20] + said + [7, 8, 9])
    assert blocks(engine.stats()) == (2, 0)  # the first prompt had no full block


def test_equal_prompts_that_arrive_together_are_computed_once(make_engine: Any, collect: Any) -> None:
    """The first takes the step to itself, and the others find its blocks when their turn comes."""
    engine = make_engine(max_num_tokens=16)
    ids = [engine.submit(Request(PROMPT, 2)) for _ in range(4)]
    found = collect(engine, *ids)
    assert len({tuple(found[request_id].token_ids) for request_id in ids}) == 1
    reused, missed = blocks(engine.stats())
    assert reused + missed == 4 * 3
    assert missed == 3


def test_prompt_log_probs_are_complete_with_a_warm_cache(make_engine: Any, collect: Any) -> None:
    engine = make_engine()
    cold = answer(engine, collect, PROMPT, return_prompt_log_probs=True)
    warm = answer(engine, collect, PROMPT, return_prompt_log_probs=True)
    assert len(warm.prompt_log_probs) == len(PROMPT) - 1
    assert warm.prompt_log_probs == cold.prompt_log_probs
    assert blocks(engine.stats()) == (0, 6)


def test_the_least_recently_used_prefix_makes_room(make_engine: Any, collect: Any) -> None:
    engine = make_engine(max_seq_len=160, kv_cache_tokens=7 * BLOCK_SIZE, max_input_len=150)
    first, second, third = ([number] * (3 * BLOCK_SIZE + 1) for number in (1, 2, 3))
    for prompt in (first, second, first):
        answer(engine, collect, prompt)
    assert blocks(engine.stats()) == (3, 6)
    answer(engine, collect, third)  # of the second it takes what the first has left
    answer(engine, collect, first)
    assert blocks(engine.stats()) == (6, 9)
    answer(engine, collect, second)
    assert blocks(engine.stats()) == (6, 12)


def test_it_can_be_turned_off(make_engine: Any, collect: Any) -> None:
    engine = make_engine(reuse=False)
    first, second = (answer(engine, collect, PROMPT) for _ in range(2))
    assert first.token_ids == second.token_ids
    assert blocks(engine.stats()) == (0, 6)


@pytest.mark.parametrize("reuse", [True, False])
def test_prompt_tokens_are_counted_whether_computed_or_reused(make_engine: Any, collect: Any, reuse: bool) -> None:
    engine = make_engine(reuse=reuse)
    for _ in range(3):
        answer(engine, collect, PROMPT)
    assert engine.stats().prompt_tokens == 3 * len(PROMPT)
