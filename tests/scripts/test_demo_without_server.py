"""Where Triton cannot run, the demo says so and runs the engine alone."""

import demo
import pytest
from click.testing import CliRunner


def test_the_engine_answers_without_a_server(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        demo, "unsupported_platform", lambda: "Triton's wheel is for Linux on x86-64, this is a toaster"
    )
    result = CliRunner().invoke(demo.main)
    assert result.exit_code == 0, result.output
    assert "this is a toaster" in result.stderr
    assert "so here is the engine without the server" in result.stderr
    assert "Zorin" in result.stdout  # the chat answer, from facts in the question
    assert "perplexity: A" in capfd.readouterr().out  # of the command that the demo ran last
