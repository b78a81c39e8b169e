"""What an operator may tune of the PyTorch engine, and what is refused."""

from collections.abc import Callable

import pytest

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.pytorch.engine import PyTorchEngine
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.pytorch.settings import PyTorchSettings

BUILT = EngineLimits(max_batch_size=4, max_input_len=100, max_seq_len=128, max_num_tokens=64)


def test_without_settings_the_engine_is_what_was_built() -> None:
    assert PyTorchSettings().lowered(BUILT) == BUILT


def test_the_tokens_of_a_step_may_be_lowered(model: MixtralModel) -> None:
    engine = PyTorchEngine(model, BUILT, settings=PyTorchSettings(max_num_tokens=16))
    assert engine.limits.max_num_tokens == 16
    engine.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PyTorchSettings(max_num_tokens=0), "max_num_tokens is 0, it must be at least 1"),
        (
            lambda: PyTorchSettings(max_num_tokens=65).lowered(BUILT),
            "pytorch.max_num_tokens is 65, the engine was built for 64",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_limit(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        make()


def test_a_full_batch_must_still_decode_in_one_step(model: MixtralModel) -> None:
    with pytest.raises(InvalidArgument, match="max_num_tokens is 3, it must be at least max_batch_size, which is 4"):
        PyTorchEngine(model, BUILT, settings=PyTorchSettings(max_num_tokens=3))
