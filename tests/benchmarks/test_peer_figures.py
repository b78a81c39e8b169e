"""Figures of one batch of a peer, ratios over rounds, the picture, and a peer in a process of its own."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peers.interface import Figures, PeerUnavailable, Settings, Trace, figures
from peers.peer_process import MODULES, PeerFailed, PeerProcess
from peers.picture import draw
from peers.report import METRICS, Ratio, ratios, table


def trace(*times: list[float], begun: float = 10.0) -> Trace:
    return Trace(begun, [[7] * len(own) for own in times], [list(own) for own in times])


def test_one_sequence() -> None:
    """The first token after 2 s, then three more in 1.5 s; 5 prompt and 4 output tokens in 3.5 s."""
    assert figures(trace([12.0, 12.5, 13.0, 13.5]), input_tokens=5) == Figures(2.0, 2.0, 9 / 3.5)


def test_decoding_counts_from_when_every_sequence_has_its_first_token() -> None:
    """Two tokens come while the second sequence still waits: they are of no full batch."""
    found = figures(trace([11.0, 12.0, 14.0, 15.0], [13.0, 14.0, 15.0]), input_tokens=1)
    assert found.ttft_s == 2.0  # the median of 1 and 3
    assert found.decode_tokens_per_s == 4 / 2.0
    assert found.total_tokens_per_s == 9 / 5.0


def test_a_response_of_several_tokens_counts_them_all() -> None:
    whole = Trace.start(0.0, 1)
    whole.add(0, [1], 1.0)
    whole.add(0, [2, 3, 4], 2.0)
    assert figures(whole, input_tokens=1).decode_tokens_per_s == 3.0


def test_ratios_are_of_the_same_round() -> None:
    """A slow round of the machine slows both, and the ratio stays."""
    ours = [Figures(0.1, 100, 400), Figures(0.4, 25, 100), Figures(0.1, 110, 400)]
    theirs = [Figures(0.2, 50, 200), Figures(0.8, 12.5, 50), Figures(0.2, 50, 0)]
    found = list(ratios({("server", 4): ours, ("other", 4): theirs}, "server"))
    assert found == [
        Ratio("other", 4, "ttft_s", 0.5, 0.5, 0.5),
        Ratio("other", 4, "decode_tokens_per_s", 2.0, 2.0, 2.2),
        Ratio("other", 4, "total_tokens_per_s", 2.0, 2.0, 2.0),  # of the rounds that have one
    ]


def report() -> dict[str, Any]:
    rounds = [asdict(Figures(0.1 * i, 100.0 * i, 300.0)) for i in (1, 2, 3)]
    weights = {"server": "int8, rows", "other": "Q8_0 (8 bits)"}
    return {
        "machine": {"processor": "Some Processor 3000", "cores": 2},
        "settings": {"model": "small", "input_tokens": 8, "output_tokens": 4, "rounds": 3, "threads": 1},
        "peers": {name: {"weights": text, "versions": {f"{name}-lib": "1.2"}} for name, text in weights.items()},
        "skipped": {"vllm": "there is no GPU"},
        "measurements": [{"peer": name, "concurrency": n, "rounds": rounds} for n in (1, 4) for name in weights],
        "ratios": [asdict(Ratio("other", 4, metric, 0.5, 0.25, 1.0)) for metric in METRICS],
    }


def test_the_table_has_medians_ratios_and_who_was_left_out() -> None:
    lines = table(report()).splitlines()
    assert lines[1].split() == ["1", "server", "200.0", "200", "300"]
    assert ["4", "other", "ttft_s", "0.50", "0.25-1.00"] in [line.split() for line in lines]
    assert lines[-1] == "vllm was left out: there is no GPU"


def test_the_picture_says_what_was_measured_on_what(tmp_path: Path) -> None:
    draw(report(), tmp_path)
    text = (tmp_path / "peers.svg").read_text()
    for words in (
        "server (int8)",
        "other (Q8_0)",
        "time to first token, ms",
        "requests at once",
        "Some Processor 3000",
    ):
        assert words in text
    assert "8 tokens in, 4 out, greedy" in text
    assert "server-lib 1.2, other-lib 1.2" in text
    assert (tmp_path / "peers.png").stat().st_size > 5000


@pytest.fixture
def settings(tmp_path: Path, demo_model: Path) -> Settings:
    return Settings(demo_model, threads=1, max_sequences=2, max_tokens=24, folder=tmp_path / "peer")


def test_transformers_generates_exact_lengths_that_it_would_choose_again(settings: Settings) -> None:
    peer = PeerProcess("transformers", settings)
    try:
        prompts = [[1, 400, 500, 600], [1, 700, 800, 900]]
        generated = peer.generate(prompts, 8)
        assert [len(tokens) for tokens in generated.tokens] == [8, 8]
        assert all(list(times) == sorted(times) for times in generated.times)
        assert generated.begun < generated.times[0][0]
        assert max(peer.regrets(prompts, generated.tokens)) < 0.2  # bfloat16 may break a tie otherwise
        wrong = [[*tokens[:4], 3, *tokens[5:]] for tokens in generated.tokens]
        assert max(peer.regrets(prompts, wrong)) > 2
    finally:
        peer.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_vllm_is_left_out_without_a_gpu(settings: Settings) -> None:
    with pytest.raises(PeerUnavailable, match="vLLM is measured on a GPU only, and there is none here"):
        PeerProcess("vllm", settings)


def test_a_peer_without_its_library_is_unavailable(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "absent", "peers_that_do_not_exist")
    with pytest.raises(PeerUnavailable, match="peers_that_do_not_exist is not installed"):
        PeerProcess("absent", settings)


def test_a_peer_whose_process_dies_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "crashing_peer.py").write_text("import os\n\ndef open_peer(settings):\n    os._exit(11)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MODULES, "crashing", "crashing_peer")
    with pytest.raises(PeerFailed, match="crashing ended with exit code 11"):
        PeerProcess("crashing", settings)
