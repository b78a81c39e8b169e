"""A Linear that does something else with its input or its product, and is the one inside in everything else."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixtral_runtime.formats import Linear


@dataclass(frozen=True, slots=True)
class LinearAround:
    """Subclasses say what `__call__` does: [rows, in] to [rows, out], as of any Linear."""

    linear: Linear

    @property
    def out_features(self) -> int:
        return self.linear.out_features

    @property
    def in_features(self) -> int:
        return self.linear.in_features

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self.linear.dequantize(dtype)
