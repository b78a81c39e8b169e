"""The paged KV cache: the tensor that holds the blocks, and how many there are."""

import torch
from torch import Tensor

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.devices import available_memory
from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats.fp8 import E4M3, to_e4m3
from mixtral_runtime.plan import TOKENS_PER_BLOCK, blocks_for, kv_budget, kv_bytes_per_token, model_size, step_bytes

BLOCK_SIZE = TOKENS_PER_BLOCK  # a multiple of the attention's tile, so that no tile needs half a block
GIB = 2**30


class KvCache:
    """Keys and values of all layers. A slot is the place of one token: block number * BLOCK_SIZE + offset.

    storage: [layers, 2, blocks, BLOCK_SIZE, kv_heads, head_size] in the activations' dtype, or E4M3 as uint8 in units
    of scales: [layers] float32. `write` and `read` are the plain way to it; the CPU kernels have their own.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        total_blocks: int,
        device: torch.device,
        dtype: torch.dtype,
        scales: Tensor | None = None,
    ) -> None:
        """dtype: of what is written and read. scales: [layers] float32, for an FP8 cache and for no other."""
        stored = cache_dtype(config, dtype)
        assert (scales is not None) == (stored == E4M3), stored
        shape = (config.num_hidden_layers, 2, total_blocks, BLOCK_SIZE, config.num_key_value_heads, config.head_size)
        self.storage = torch.zeros(shape, device=device, dtype=torch.uint8 if stored == E4M3 else stored)
        self.scales = scales
        self._dtype = dtype

    @property
    def total_blocks(self) -> int:
        return self.storage.shape[2]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """slots: [tokens] int64. keys, values: [tokens, kv_heads, head_size]."""
        flat = self.storage[layer].flatten(1, 2)  # [2, slots, kv_heads, head_size]
        flat[0].index_copy_(0, slots, self._pack(layer, keys))
        flat[1].index_copy_(0, slots, self._pack(layer, values))

    def read(self, layer: int, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The keys and values of one sequence, [kv_heads, blocks * BLOCK_SIZE, head_size], zero from `length` on.

        A block keeps what its last owner wrote. Masked keys have weight 0, but 0 * NaN is NaN: without the zeros a
        sequence that overflowed could spoil the next owner of its blocks.
        """
        stored = self.storage[layer].index_select(1, blocks).flatten(1, 2)  # [2, slots, kv_heads, head_size]
        keys, values = self._unpack(layer, stored)
        keys[length:] = 0
        values[length:] = 0
        return keys.transpose(0, 1), values.transpose(0, 1)

    def _pack(self, layer: int, values: Tensor) -> Tensor:
        # Indexing is not implemented for FP8, so that its bytes are stored.
        return values if self.scales is None else to_e4m3(values, self.scales[layer]).view(torch.uint8)

    def _unpack(self, layer: int, stored: Tensor) -> Tensor:
        if self.scales is None:
            return stored
        return (stored.view(E4M3).float() * self.scales[layer]).to(self._dtype)


def cache_dtype(config: CheckpointConfig, dtype: torch.dtype) -> torch.dtype:
    """What the cache holds of keys and values of `dtype`."""
    return dtype if config.quantization.kv_cache_quant_algo is None else E4M3


def plan_blocks(
    config: CheckpointConfig,
    limits: EngineLimits,
    kv_cache_tokens: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """How many blocks to hold: `kv_cache_tokens`, or else what a full batch of longest sequences needs, cut to what
    `mixtral_runtime.plan` allows of the memory that is free now. dtype: of the cache.

    Raises InvalidArgument when not even one longest sequence has room, or the memory does not suffice.
    """
    per_token = kv_bytes_per_token(config, dtype.itemsize)
    is_gpu = device.type == "cuda"
    # A GPU's weights are loaded by now; a CPU's are mapped, and the memory they will need still counts as free.
    free = torch.cuda.mem_get_info(device)[0] if is_gpu else available_memory()
    free -= step_bytes(config, limits.max_num_tokens, limits.max_batch_size)
    budget = kv_budget(free, 0 if is_gpu else model_size(config).weights, is_gpu=is_gpu)
    room = budget // (per_token * BLOCK_SIZE)  # blocks
    needed = blocks_for(limits.max_seq_len)
    if kv_cache_tokens is None:
        planned = max(needed, min(needed * limits.max_batch_size, room))
    else:
        planned = kv_cache_tokens // BLOCK_SIZE
        if planned < needed:
            raise InvalidArgument(
                f"kv_cache_tokens is {kv_cache_tokens}, one sequence of max_seq_len {limits.max_seq_len} tokens needs "
                f"{needed * BLOCK_SIZE}"
            )
    if planned > room:
        raise InvalidArgument(
            f"the KV cache for {planned * BLOCK_SIZE} tokens needs {planned * BLOCK_SIZE * per_token / GIB:.2f} GiB, "
            f"{budget / GIB:.2f} GiB may be used on {device}; lower max_seq_len or kv_cache_tokens"
        )
    return planned
