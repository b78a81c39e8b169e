"""The text of a failed stream becomes an error that a caller can tell apart."""

import pytest

from mixtral_client import Cancelled, Internal, InvalidArgument, MixtralClientError, ServerError, Unavailable
from mixtral_client.errors import parse_server_error


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidArgument),
        ("UNAVAILABLE", Unavailable),
        ("INTERNAL", Internal),
        ("CANCELLED", Cancelled),
    ],
)
def test_each_code_word_has_its_class(word: str, kind: type[ServerError]) -> None:
    error = parse_server_error(f"in ensemble 'ensemble', {word}: max_tokens is 5000, the limit is 4096")
    assert type(error) is kind
    assert str(error) == "max_tokens is 5000, the limit is 4096"
    assert error.code == word


def test_another_code_word_is_kept_on_a_plain_server_error() -> None:
    error = parse_server_error("RESOURCE_EXHAUSTED: no blocks")
    assert type(error) is ServerError
    assert (error.code, str(error)) == ("RESOURCE_EXHAUSTED", "no blocks")


def test_a_sentence_of_tritons_own_has_no_code_word() -> None:
    error = parse_server_error("unexpected inference input 'nope' for model 'ensemble'")
    assert (error.code, str(error)) == ("UNKNOWN", "unexpected inference input 'nope' for model 'ensemble'")


def test_nested_ensemble_prefixes_are_stripped() -> None:
    error = parse_server_error("in ensemble 'outer', in ensemble 'ensemble', UNAVAILABLE: the queue is full: 256 wait")
    assert isinstance(error, Unavailable)
    assert str(error) == "the queue is full: 256 wait"


def test_a_colon_alone_makes_no_code_word() -> None:
    assert str(parse_server_error("Note: nothing was loaded")) == "Note: nothing was loaded"


def test_one_base_class_catches_everything() -> None:
    with pytest.raises(MixtralClientError):
        raise parse_server_error("INTERNAL: the engine stopped")
