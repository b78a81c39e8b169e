"""TensorRT-LLM's kernel layout for int8 weights, `preprocess_weights_for_mixed_gemm`, and its inverse.

Source: NVIDIA/TensorRT-LLM, cpp/tensorrt_llm/kernels/cutlass_kernels/cutlass_preprocessors.cpp, for int8 weights with
16-bit activations. Its four steps are a permutation of every 16 rows of `in`, a transpose, an interleave of columns,
and a bias of 128 with bytes 1 and 2 of every four exchanged. Here the plain side is [out, in] or [experts, out, in],
which already is the transpose; and the first step's permutation (0 1 8 9 2 3 10 11 ...) followed by the last step's
exchange just takes the two halves of every 16 alternately. So the whole is one exchange of axes and one flip of a bit.
"""

import torch
from torch import Tensor

from mixtral_runtime.errors import InvalidArgument

TILE_ROWS = 64  # of `in`, in the column interleave
MULTIPLE = 64  # TensorRT-LLM's loader pads linears to this, so it takes unpadded ones only when both sizes are


def check_shape(name: str, out_features: int, in_features: int) -> None:
    """Raises InvalidArgument when a matrix does not fit the kernels."""
    for side, size in (("output", out_features), ("input", in_features)):
        if size % MULTIPLE:
            raise InvalidArgument(
                f"{name} has {size} {side} features, the sm80 and sm90 layouts need a multiple of {MULTIPLE}; "
                f"use --layout plain"
            )


def to_kernel_layout(weight: Tensor, layout: str) -> Tensor:
    """int8 [out, in] or [experts, out, in] -> int8 [in, out] or [experts, in, out] in kernel byte order.

    layout: "sm80" (SM80 to 89) or "sm90".
    """
    *experts, out_features, in_features = weight.shape
    # [experts * pairs of columns, column of the pair, tile, 16 of the tile, half of the 16, in the half]
    tiles = weight.reshape(-1, 2, in_features // TILE_ROWS, TILE_ROWS // 16, 2, 8).transpose(4, 5)
    if _interleaves_columns(layout, weight.ndim):
        tiles = tiles.transpose(1, 2)  # 64 of an even column, then 64 of the odd one, alternating along `in`
    return _flip_sign_bit(tiles.contiguous()).view(*experts, in_features, out_features)


def from_kernel_layout(processed: Tensor, layout: str) -> Tensor:
    """The inverse of `to_kernel_layout`: int8 [..., in, out] in kernel byte order -> int8 [..., out, in]."""
    *experts, in_features, out_features = processed.shape
    if _interleaves_columns(layout, processed.ndim):
        tiles = processed.reshape(-1, in_features // TILE_ROWS, 2, TILE_ROWS // 16, 8, 2).transpose(1, 2)
    else:
        tiles = processed.reshape(-1, 2, in_features // TILE_ROWS, TILE_ROWS // 16, 8, 2)
    return _flip_sign_bit(tiles.transpose(4, 5).contiguous()).view(*experts, out_features, in_features)


def _interleaves_columns(layout: str, dimensions: int) -> bool:
    """SM90 leaves the step out for plain matrices; its expert kernels are SM80's."""
    return layout == "sm80" or dimensions == 3


def _flip_sign_bit(values: Tensor) -> Tensor:
    """Adds 128 modulo 256 to every byte, in place."""
    return values.bitwise_xor_(torch.tensor(-128, dtype=torch.int8, device=values.device))
