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


# Up to how many tokens the product of one token takes them one by one. 0 gives one token to the tiles as well, which
# spend fewer instructions on a weight (4 bits: 2.6 instead of 3.5), but take 5 launches for a mixture instead of 2.
ONE_BY_ONE = {"dense": 1, "int8": 1, "fp8": 1, "int4": 1}


def one_by_one(weight: GpuWeight, tokens: int) -> bool:
    return tokens <= ONE_BY_ONE[weight.encoding]


def token_config(weight: GpuWeight, swiglu: bool) -> TokenConfig:
    """Each thread has 8 reads of 16 bytes on their way (4 bits: 4, of twice as many weights), 16 KiB for 4 warps; 5
    such blocks fit a multiprocessor's registers. Without SwiGLU matrices have few rows: 8 of them for a block, so that
    every multiprocessor gets 4 blocks, and twice as many columns."""
    if INTERPRETED:  # where a program costs milliseconds, however small
        return TokenConfig(rows=64, columns=256, warps=1, stages=1)
    columns = 512 if weight.encoding == "dense" else 1024
    if swiglu:
        return TokenConfig(rows=8 if weight.encoding == "int4" else 16, columns=columns, warps=4, stages=1)
    if weight.encoding == "int4":
        return TokenConfig(rows=4, columns=2 * columns, warps=4, stages=1)
    return TokenConfig(rows=8, columns=2 * columns, warps=4, stages=1)


# rows, columns, warps and stages by encoding and tokens of a tile. Few tokens: the weight's bytes are all that counts.
# 2 or 3 blocks of a multiprocessor with 2 or 3 tiles of 16 KiB each on their way are several times the 22 KiB that
# 4.2 TB/s need at 0.7 us of latency. Many tokens: two blocks of 8 warps on a multiprocessor (at most 128 registers), so
# that one converts while the other multiplies. A step of 4-bit weights is a group, whose scale multiplies its sum: two
# sums are in registers, which allows 64 tokens; and their 4 warps must all have rows of both nibbles.
Shape = tuple[int, int, int, int]
HOPPER: dict[str, dict[int, Shape]] = {
    "dense": {16: (128, 64, 4, 4), 32: (128, 64, 4, 4), 64: (128, 64, 8, 4), 128: (128, 64, 8, 3)},
    "int8": {16: (128, 128, 4, 4), 32: (128, 128, 4, 4), 64: (128, 128, 8, 3), 128: (128, 64, 8, 4)},
    "fp8": {16: (128, 128, 4, 4), 32: (128, 128, 4, 4), 64: (128, 128, 8, 4), 128: (128, 128, 8, 3)},
    "int4": {16: (64, 128, 4, 4), 32: (64, 128, 4, 4), 64: (64, 128, 4, 3)},
}
AMPERE: dict[str, dict[int, Shape]] = {
    "dense": {16: (64, 64, 4, 4), 32: (64, 64, 4, 4), 64: (128, 64, 8, 3), 128: (128, 64, 8, 3)},
    "int8": {16: (64, 128, 4, 4), 32: (64, 128, 4, 4), 64: (128, 64, 8, 3), 128: (128, 64, 8, 3)},
    "fp8": {16: (64, 128, 4, 4), 32: (64, 128, 4, 4), 64: (128, 64, 8, 3), 128: (128, 64, 8, 3)},
    "int4": {16: (64, 128, 4, 4), 32: (64, 128, 4, 4), 64: (64, 64, 8, 3)},
}


def token_tile(weight: GpuWeight, tokens: int) -> int:
    """tokens: that an expert gets on average. The share of a padded tile that is wasted against how often weights are
    converted and read from the L2 cache anew: just above a tile's size half of the second one would be empty."""
    for size in (16, 32):
        if tokens <= size:
            return size
    return 64 if tokens < 128 else max(_shapes(weight))


def tile_config(weight: GpuWeight, tokens: int, swiglu: bool) -> TileConfig:
    """tokens: that an expert gets on average, or that a plain weight is multiplied by."""
    tile = token_tile(weight, tokens)
    rows, columns, warps, stages = _shapes(weight)[tile]
    if swiglu:  # enough rows for every multiprocessor; and pieces of `up` and `gate` could not be combined
        return TileConfig(rows, tile, columns, warps, stages)
    wanted = MULTIPROCESSORS[WGMMA if weight.sm >= WGMMA else 80]  # blocks
    if tile <= 32:
        rows = 64  # the matrix units' smallest on Hopper
        wanted *= 2
    # Of the experts that are busy. No piece with less than 4 steps: what is saved would go into summing the pieces.
    blocks = weight.data.shape[1] // rows * min(weight.experts, tokens) * max(1, tokens // tile)
    splits = 1
    while splits < 8 and blocks * splits < wanted and weight.in_features // columns >= 8 * splits:
        splits *= 2
    return TileConfig(rows, tile, columns, warps, stages, splits)


def _shapes(weight: GpuWeight) -> dict[int, Shape]:
    return (HOPPER if weight.sm >= WGMMA else AMPERE)[weight.encoding]
