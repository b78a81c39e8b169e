"""What of a weight goes into the file of each rank, quantised."""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtral_runtime.formats import Format
from mixtral_runtime.formats.int8 import Int8
from mixtral_runtime.tensor_names import Weight, weight_specs
from mixtral_runtime.tensor_parallel import Split


def quantize_for_ranks(
    weight: Weight, parts: Sequence[Tensor], weight_format: Format, tp_size: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Each rank and its tensors by name, from the parts [..., in] of the weight, or of one of its experts.

    Int8 is split first and each share quantised by itself, as convert_checkpoint does it: the scales of a row-parallel
    weight then differ from rank to rank. The other formats are quantised whole and then split, as modelopt exports
    them. Zeros follow a vocabulary that has fewer rows than the ranks must have.
    """
    parts = [*parts[:-1], _with_rows_below(parts[-1], weight, tp_size)] if not weight.quantized else parts
    if weight.quantized and not isinstance(weight_format, Int8):
        tensors = weight_format.quantize(weight.name, _joined(weight, parts))
        yield from split_for_ranks(weight, tensors, weight_format, tp_size)
        return
    axis = 1 if weight.split is Split.ROW else 0
    for rank in range(tp_size):
        shares = [weight.split.share(part, axis, [part.shape[axis]], rank, tp_size) for part in parts]
        rows = _joined(weight, shares)
        yield rank, weight_format.quantize(weight.name, rows) if weight.quantized else {weight.name: rows}


def split_for_ranks(
    weight: Weight, tensors: Mapping[str, Tensor], weight_format: Format, tp_size: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Each rank and its tensors by name, from those that quantising has made of the weight, or of one of its experts,
    or from what calibration found for it (`Format.constants`)."""
    full = {spec.name: spec.shape for spec in weight_specs(weight, weight_format)}
    share = {spec.name: spec.shape for spec in weight_specs(weight, weight_format, tp_size)}
    rows = [part.shape[0] for part in weight.parts[0]]
    for rank in range(tp_size):
        found = dict(tensors)
        for name, tensor in tensors.items():
            # The axis along which the shapes differ is the divided one; without one, the tensor is on every rank.
            for axis, (length, part_length) in enumerate(zip(full[name], share[name], strict=True)):
                if length != part_length:
                    # 4-bit values lie two rows to one, so an axis can be shorter than the rows that it stands for.
                    lengths = [count * length // sum(rows) for count in rows]
                    found[name] = weight.split.share(tensor, axis, lengths, rank, tp_size)
        yield rank, found


def _joined(weight: Weight, parts: Sequence[Tensor]) -> Tensor:
    """[n], [out, in], or [1, out, in] for one expert."""
    rows = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    return rows[None] if weight.stacked else rows


def _with_rows_below(part: Tensor, weight: Weight, tp_size: int) -> Tensor:
    rows = weight.split.rank_shape(weight.shape, tp_size)[0] * (tp_size if weight.split is Split.COLUMN else 1)
    return F.pad(part, (0, 0, 0, rows - part.shape[0])) if rows > part.shape[0] else part
