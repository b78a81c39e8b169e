"""The paged KV cache: which block belongs to which sequence, and the tensor that holds the blocks."""

from collections import deque

import psutil
import torch
from torch import Tensor

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.errors import InvalidArgument

BLOCK_SIZE = 32  # tokens; a multiple of the attention's tile, so that no tile needs half a block
GIB = 2**30


class BlockPool:
    """Block numbers only. A block is free or owned by exactly one sequence."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = deque(range(total))
        self._owner: dict[int, int] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    def allocate(self, owner: int, count: int) -> list[int]:
        assert 0 < count <= len(self._free), f"{count} blocks asked, {len(self._free)} are free"
        blocks = [self._free.popleft() for _ in range(count)]
        for block in blocks:
            assert block not in self._owner
            self._owner[block] = owner
        return blocks

    def release(self, owner: int, blocks: list[int]) -> None:
        for block in blocks:
            assert self._owner.pop(block) == owner, f"block {block} is not owned by sequence {owner}"
            self._free.append(block)
        assert len(self._free) + len(self._owner) == self.total


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE)


class KvCache:
    """Keys and values of all layers. A slot is the place of one token: block number * BLOCK_SIZE + offset."""

    def __init__(self, config: CheckpointConfig, total_blocks: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_hidden_layers, 2, total_blocks, BLOCK_SIZE, config.num_key_value_heads, config.head_size)
        self._storage = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def total_blocks(self) -> int:
        return self._storage.shape[2]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """slots: [tokens] int64. keys, values: [tokens, kv_heads, head_size]."""
        flat = self._storage[layer].flatten(1, 2)  # [2, slots, kv_heads, head_size]
        flat[0].index_copy_(0, slots, keys)
        flat[1].index_copy_(0, slots, values)

    def read(self, layer: int, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The keys and values of one sequence, [kv_heads, blocks * BLOCK_SIZE, head_size], zero from `length` on.

        A block keeps what its last owner wrote. Masked keys have weight 0, but 0 * NaN is NaN: without the zeros a
        sequence that overflowed could spoil the next owner of its blocks.
        """
        keys, values = self._storage[layer].index_select(1, blocks).flatten(1, 2)  # [slots, kv_heads, head_size]
        keys[length:] = 0
        values[length:] = 0
        return keys.transpose(0, 1), values.transpose(0, 1)


def plan_blocks(
    config: CheckpointConfig,
    max_seq_len: int,
    max_batch_size: int,
    kv_cache_tokens: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """How many blocks to hold: `kv_cache_tokens`, or else what a full batch of longest sequences needs, cut to half
    of the free memory of a CPU or nine tenths of a GPU's.

    Raises InvalidArgument when not even one longest sequence has room, or the memory does not suffice.
    """
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_size * dtype.itemsize
    free = _free_memory(device)
    budget = int(free * (0.9 if device.type == "cuda" else 0.5))
    room = budget // (per_token * BLOCK_SIZE)  # blocks
    needed = blocks_for(max_seq_len)
    if kv_cache_tokens is None:
        planned = max(needed, min(needed * max_batch_size, room))
    else:
        planned = kv_cache_tokens // BLOCK_SIZE
        if planned < needed:
            raise InvalidArgument(
                f"kv_cache_tokens is {kv_cache_tokens}, one sequence of max_seq_len {max_seq_len} tokens needs "
                f"{needed * BLOCK_SIZE}"
            )
    if planned > room:
        raise InvalidArgument(
            f"the KV cache for {planned * BLOCK_SIZE} tokens needs {planned * BLOCK_SIZE * per_token / GIB:.2f} GiB, "
            f"{budget / GIB:.2f} GiB may be used on {device}; lower max_seq_len or kv_cache_tokens"
        )
    return planned


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
