"""Tile sizes of the matrix products: a table for each family of kernels, to be tuned here and nowhere else."""

from dataclasses import dataclass

from mixtral_runtime.kernels.gpu.weights import INTERPRETED, WGMMA, GpuWeight

MULTIPROCESSORS = {80: 108, 90: 132}  # of an A100; of an H100 and an H200


@dataclass(frozen=True, slots=True)
class TileConfig:
    """rows: of the weight, as they are stored; with SwiGLU half of them are `up`. tokens, columns (of `in`): of one
    tile. splits: pieces that `in` is cut into. together: token tiles whose programs run beside each other, so that
    they share what they read of the weight in the L2 cache."""

    rows: int
    tokens: int
    columns: int
    warps: int
    stages: int
    splits: int = 1
    together: int = 32


@dataclass(frozen=True, slots=True)
class TokenConfig:
    """Of the product of one token. rows: as they are stored, of one program; with SwiGLU half of them are `up`.
    columns: of `in`, at a time. stages: above 1, tiles are copied to shared memory that many minus one ahead."""

    rows: int
    columns: int
    warps: int
    stages: int


def token_config(weight: GpuWeight, swiglu: bool) -> TokenConfig:
    """Each thread has 8 reads of 16 bytes on their way, 16 KiB for 4 warps; 5 such blocks fit a multiprocessor's
    registers. Fewer rows where the matrix is small, so that every multiprocessor gets several blocks."""
    if INTERPRETED:  # where a program costs milliseconds, however small
        return TokenConfig(rows=64, columns=256, warps=1, stages=1)
    columns = 512 if weight.encoding == "dense" else 1024
    if weight.encoding == "int4":
        return TokenConfig(rows=8, columns=columns, warps=4, stages=1)
    return TokenConfig(rows=16 if swiglu else 8, columns=columns, warps=4, stages=1)


def token_tile(tokens: int) -> int:
    """tokens: that an expert gets on average. A power of two, the padded tile's share of waste against how often the
    weight is converted anew."""
    for size in (16, 32, 64):
        if tokens <= size:
            return size
    # Just above a tile's size half of the second one would be empty: smaller tiles until there are many.
    return 64 if tokens < 192 else 128


def tile_config(weight: GpuWeight, tokens: int, swiglu: bool) -> TileConfig:
    """tokens: that an expert gets on average, or that a plain weight is multiplied by.

    Few tokens: the weight's bytes are all that counts. 2 or 3 blocks on a multiprocessor with 2 or 3 tiles of 16 KiB
    each on their way are several times the 22 KiB that 4.2 TB/s need at 0.7 us of latency.
    Many tokens: 8 warps on 128 weight rows by 128 tokens keep the matrix units busy while the other half converts.
    """
    tile = token_tile(tokens)
    dense = weight.encoding == "dense"
    if weight.sm >= WGMMA:
        rows = 64 if weight.encoding == "int4" else 128
        columns = 64 if dense else 128
        warps = 8 if tile >= 128 else 4
        stages = 4 if tile <= 32 else 3
    else:
        rows = 64
        columns = 64 if dense or tile >= 64 else 128
        warps = 8 if tile >= 128 else 4
        stages = 4 if tile <= 32 else 3
    splits = 1
    if not swiglu:
        if tile <= 64 and weight.encoding != "int4":
            rows = 64  # the matrix units' smallest on Hopper
        # Blocks of all experts that are busy; two on each multiprocessor, and none with less than 4 steps.
        blocks = weight.data.shape[1] // rows * min(weight.experts, tokens) * max(1, tokens // tile)
        wanted = 2 * MULTIPROCESSORS[WGMMA if weight.sm >= WGMMA else 80]
        while splits < 8 and blocks * splits < wanted and weight.in_features // columns >= 8 * splits:
            splits *= 2
    return TileConfig(rows, tile, columns, warps, stages, splits)
