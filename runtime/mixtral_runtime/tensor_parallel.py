"""How TensorRT-LLM divides a model's weights among the GPUs of a tensor parallel group.

Source: tensorrt_llm/models/llama/convert.py and layers/linear.py (1.2.1), modelopt/torch/export (0.37).
"""

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor


class Split(Enum):
    """COLUMN divides the output features, ROW the input features of [..., out, in]; other weights are on every rank.

    A weight that is made of several (query, key and value; up and gate projection) is divided part by part, so that
    every rank has its heads of each.
    """

    REPLICATED = "replicated"
    COLUMN = "column"
    ROW = "row"

    def rank_shape(self, shape: tuple[int, ...], tp_size: int) -> tuple[int, ...]:
        """Of each rank's share of a weight of `shape` [..., out, in]. Output features that tp_size does not divide,
        which only a vocabulary may have, are padded."""
        if self is Split.REPLICATED:
            return shape
        *experts, out_features, in_features = shape
        if self is Split.ROW:
            assert in_features % tp_size == 0, (shape, tp_size)
            return (*experts, out_features, in_features // tp_size)
        return (*experts, -(-out_features // tp_size), in_features)

    def share(self, tensor: Tensor, axis: int, part_lengths: Sequence[int], rank: int, tp_size: int) -> Tensor:
        """The rank's share along the divided axis. part_lengths: of each part along it, multiples of tp_size; ROW has
        no parts and takes no notice of them."""
        if self is Split.REPLICATED or tp_size == 1:
            return tensor
        parts = torch.split(tensor, list(part_lengths), dim=axis) if self is Split.COLUMN else (tensor,)
        shares = [part.chunk(tp_size, dim=axis)[rank] for part in parts]
        return torch.cat(shares, dim=axis) if len(shares) > 1 else shares[0]
