"""The same request and seed give the same tokens and log probabilities, bit for bit, whatever happens around them."""

from typing import Any

import pytest

from mixtral_runtime.engine import Engine, EngineLimits, Request, SamplingParams
from mixtral_runtime.pytorch.engine import PyTorchEngine
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.pytorch.settings import PyTorchSettings

BEGINNING = [(5 * i * i + 3) % 160 for i in range(70)]  # two full blocks and a bit
PROMPTS = [BEGINNING + [(7 * i * i + 3 * n) % 160 for i in range(30 + 10 * n)] for n in range(6)] + [BEGINNING[:1]]


def requests() -> list[Request]:
    """Everything that a request may ask of the sampler, in other mixtures for each."""
    return [
        Request(
            prompt,
            max_tokens=60 + 9 * n,
            sampling=SamplingParams(
                temperature=0.0 if n == 0 else 0.5 + n / 4,
                top_k=(0, 0, 20, 150)[n % 4],
                top_p=0.95 if n % 2 else 1.0,
                min_p=0.01 * (n % 3),
                repetition_penalty=1.1,
                presence_penalty=0.4 * n,
                frequency_penalty=0.5 if n % 2 else 0.0,
                seed=n,
            ),
            end_id=11,
            min_tokens=55 + 9 * n,  # lengths, and with them preemption, hardly depend on the tokens
            stop_sequences=[[1, 2, 3]],
            bad_sequences=[[n], [5, 6 + n]],
            logit_bias={20 + n: 2.0, 30: -100.0} if n % 3 else {},
            return_log_probs=True,
            return_prompt_log_probs=n % 2 == 1,
            top_log_probs=3,
            priority=n % 3 / 2,
            streaming=n != 3,
        )
        for n, prompt in enumerate(PROMPTS)
    ]


def answers(engine: Engine, collect: Any, wanted: list[Request]) -> list[tuple[Any, ...]]:
    """All that the clients get, in order of the requests."""
    ids = [engine.submit(request) for request in wanted]
    found = collect(engine, *ids)
    return [
        (one.token_ids, one.log_probs, one.top_log_probs, one.prompt_log_probs, one.finish_reason)
        for one in (found[request_id] for request_id in ids)
    ]


@pytest.fixture(scope="module")
def alone(model: MixtralModel, collect: Any) -> list[tuple[Any, ...]]:
    """Each request on its own, its prompt in one piece, nothing reused."""
    engine = PyTorchEngine(model, EngineLimits(1, 400, 512, 400), settings=PyTorchSettings(kv_cache_block_reuse=False))
    found = [answers(engine, collect, [request])[0] for request in requests()]
    assert engine.stats().preemptions == engine.stats().prefix_blocks_reused == 0
    engine.close()
    return found


@pytest.mark.parametrize("max_num_tokens", [8, 50, 512])
@pytest.mark.parametrize("reuse", [True, False])
def test_in_any_batch_and_chunking_with_preemption_and_with_and_without_reuse(
    make_engine: Any, collect: Any, alone: list[tuple[Any, ...]], max_num_tokens: int, reuse: bool
) -> None:
    """The cache holds one longest sequence, so that those that run together push each other out."""
    engine = make_engine(max_seq_len=288, kv_cache_tokens=288, max_num_tokens=max_num_tokens, reuse=reuse)
    assert answers(engine, collect, requests()) == alone
    stats = engine.stats()
    assert stats.preemptions > 0
    assert (stats.prefix_blocks_reused > 0) == reuse
    assert stats.kv_blocks_free == stats.kv_blocks_total


def test_in_a_cache_that_holds_everything(make_engine: Any, collect: Any, alone: list[tuple[Any, ...]]) -> None:
    """Asked twice: the second time nearly all is in the cache."""
    engine = make_engine()
    for _ in range(2):
        assert answers(engine, collect, requests()) == alone
    stats = engine.stats()
    assert stats.preemptions == 0
    assert stats.prefix_blocks_reused > 10, "half of them want the log probabilities of their prompts and reuse nothing"
