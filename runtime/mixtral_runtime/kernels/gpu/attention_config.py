"""Sizes of the attention kernels: every number that one would tune on a GPU."""

from dataclasses import dataclass
from typing import Self

import torch
import triton


@dataclass(frozen=True)
class Gpu:
    """sm: 80, 90, …; multiprocessors: how many it has."""

    sm: int
    multiprocessors: int

    @classmethod
    def current(cls) -> Self:
        """The one that kernels are compiled for; in the interpreter an H100, for nothing depends on it but sizes."""
        if triton.knobs.runtime.interpret:
            return cls(90, 132)
        driver = triton.runtime.driver.active
        properties = driver.utils.get_device_properties(driver.get_current_device())
        return cls(driver.get_current_target().arch, properties["multiprocessor_count"])

    @property
    def has_fp8(self) -> bool:
        return self.sm >= 89


@dataclass(frozen=True)
class DecodeConfig:
    """keys: of a tile. stages: tiles in flight, with the one in work. resident: programs that a multiprocessor holds at
    once. least_keys: of a piece. merged: pieces read at once when they are added."""

    keys: int
    stages: int
    warps: int
    resident: int
    least_keys: int
    merged: int


def decode_config(head_size: int, stored: torch.dtype, gpu: Gpu) -> DecodeConfig:
    """Tiles of 32 KiB, keys and values, for heads of 128. With two buffers 68 KiB a program: three fit in 227 KiB of
    Hopper, two in 163 of an A100, so that 64 to 96 KiB are on their way to a multiprocessor at any time."""
    keys = 128 if head_size * stored.itemsize <= 128 else 64
    return DecodeConfig(keys=keys, stages=3, warps=4, resident=3 if gpu.sm >= 90 else 2, least_keys=128, merged=16)


# What a piece and adding pieces cost, in the time that a program takes for one key: guesses, to be measured.
PIECE_KEYS = 128
MERGE_KEYS = 128
MOST_WAVES = 8  # of programs, where they are split: bounds the scratch memory


def most_programs(config: DecodeConfig, gpu: Gpu) -> int:
    """More are never started with more than one piece each."""
    return MOST_WAVES * config.resident * gpu.multiprocessors


def pieces_of(programs: int, longest_context: int, config: DecodeConfig, gpu: Gpu) -> int:
    """In how many pieces the keys of each of `programs` (spans * KV heads) are cut: as many as end soonest if all are
    as long as the longest. Host numbers decide, so that a CUDA graph may keep the answer."""
    at_once = config.resident * gpu.multiprocessors
    most = min(max(longest_context, 1) // config.least_keys + 1, max(most_programs(config, gpu) // programs, 1))

    def time(pieces: int) -> float:
        waves = -(-programs * pieces // at_once)
        return waves * (longest_context / pieces + PIECE_KEYS) + (MERGE_KEYS + pieces) * (pieces > 1)

    return min(range(1, most + 1), key=time)


@dataclass(frozen=True)
class PrefillConfig:
    """rows: queries of a tile times the heads of a group. keys, stages, warps: as in DecodeConfig."""

    rows: int
    keys: int
    stages: int
    warps: int


def prefill_config(head_size: int, stored: torch.dtype, gpu: Gpu) -> PrefillConfig:
    """Eight warps are two warpgroups of 64 rows each, what one matrix instruction of Hopper takes. 128 KiB of shared
    memory for a head of 128 in 16 bit."""
    return PrefillConfig(rows=128, keys=64, stages=3, warps=8)


WRITE_TOKENS = 16  # of a program that writes to the cache
WRITE_WARPS = 4
