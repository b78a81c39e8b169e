"""The one line about a finished generation."""

from mixtral_client.commands.output import usage_line
from mixtral_client.generation import Usage


def test_the_rate_is_shown_where_it_says_something() -> None:
    usage = Usage(num_input_tokens=12, num_output_tokens=64, ttft_s=0.127, tpot_s=1 / 81, total_s=0.91)
    assert usage_line(usage, "length") == (
        "12 tokens in, 64 out, 0.127 s to first token, 81.0 tokens/s, 0.91 s in all, finished: length"
    )
    # Two responses within milliseconds give a rate of the network, not of the model.
    hurried = Usage(num_input_tokens=12, num_output_tokens=5, ttft_s=0.127, tpot_s=0.0001, total_s=0.13)
    assert "tokens/s" not in usage_line(hurried, "stop")


def test_what_is_unknown_is_left_out() -> None:
    nothing = Usage(num_input_tokens=None, num_output_tokens=None, ttft_s=None, tpot_s=None, total_s=0.5)
    assert usage_line(nothing, None) == "0.50 s in all, finished: no reason given"
