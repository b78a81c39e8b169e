"""NVIDIA's AIPerf measures the gateway, and finds about what `mixtral bench` finds on Triton itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from aiperf_agreement import AIPERF, OUTPUT_TOKENS, Load, gateway_before, run_aiperf, run_bench, synthetic

SHORT = Load(concurrency=(1, 3), rate=4.0, requests=10)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with synthetic(tmp_path_factory.mktemp("synthetic")) as url:
        yield url


def test_both_tools_agree(triton: str, tmp_path: Path) -> None:
    """The bounds are wide, since a busy machine may answer one tool later than the other; a wrong unit or another
    count of tokens is far outside. `benchmarks/aiperf_agreement.py` measures how well they agree."""
    assert AIPERF.is_file(), "AIPerf is missing; run these tests with `make test-external`"
    ours = run_bench(triton, SHORT, tmp_path)
    with gateway_before(triton) as gateway:
        theirs = run_aiperf(gateway, SHORT, tmp_path)
    for name, bench, aiperf in zip(SHORT.names, ours, theirs, strict=True):
        assert bench.output_tokens == aiperf.output_tokens == OUTPUT_TOKENS, name
        assert aiperf.input_tokens == pytest.approx(bench.input_tokens, rel=0.25), name  # not the same ten prompts
        assert 1 / 2 < aiperf.token_ms / bench.token_ms < 2, name
        assert 1 / 5 < aiperf.ttft_ms / bench.ttft_ms < 5, name
