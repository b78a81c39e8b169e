"""A loaded model holds each expert weight once."""

import gc
from collections.abc import Callable

import pytest
import torch

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.pytorch.model import MixtralModel

EXPERTS = {"hidden_size": 256, "intermediate_size": 1024, "num_local_experts": 8, "num_hidden_layers": 1}
ELEMENTS = 3 * 256 * 1024 * 8
SLACK = 1 << 20  # bytes of all other weights


def storages(dtype: torch.dtype) -> dict[int, int]:
    """Address and bytes of what the living tensors of a dtype lie in."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if type(found) is torch.Tensor and found.dtype is dtype]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_experts_are_there_once_in_the_dtype_of_the_activations(
    make_checkpoint: Callable[..., Checkpoint], dtype: torch.dtype
) -> None:
    checkpoint = make_checkpoint("16bit", **EXPERTS)  # bfloat16
    before = storages(dtype)
    model = MixtralModel.load(checkpoint, "cpu", dtype)
    new = {address: size for address, size in storages(dtype).items() if address not in before}
    assert sum(new.values()) == pytest.approx(ELEMENTS * dtype.itemsize, abs=SLACK)
    assert model.dtype is dtype
