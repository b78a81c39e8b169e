"""The Mixtral model: weights of a checkpoint and the forward pass of one step."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats import Linear
from mixtral_runtime.kernels.availability import gpu_kernels_serve
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.attention import PlainAttention, paged_attention
from mixtral_runtime.pytorch.batch import Batch, BatchBuilder
from mixtral_runtime.pytorch.experts import Experts
from mixtral_runtime.pytorch.kv_cache import KvCache
from mixtral_runtime.pytorch.layer_ops import layer_ops
from mixtral_runtime.pytorch.weights import WeightLoader

EVALUATION_CHUNK = 512  # tokens of one prefill step of `forward_logits`


@dataclass(frozen=True, slots=True)
class Layer:
    input_layernorm: Tensor  # [hidden] float32
    qkv: Linear  # [hidden] -> [(heads + 2 * kv_heads) * head_size]
    dense: Linear  # [heads * head_size] -> [hidden]
    post_layernorm: Tensor  # [hidden] float32
    router: Linear  # [hidden] -> [experts], float32
    experts: Experts
    kv_scale: Tensor | None = None  # [1] float32, with an FP8 KV cache


class MixtralModel:
    """Stateless between steps: what sequences leave behind is in the KvCache. Every row of a result depends on its own
    sequence alone, bit for bit, whatever else is in the batch and however the prompt was cut into chunks."""

    def __init__(
        self,
        config: CheckpointConfig,
        embedding: Tensor,
        layers: list[Layer],
        final_norm: Tensor,
        lm_head: Linear,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self._embedding = embedding  # [vocab, hidden]
        self._layers = layers
        self._lm_head = lm_head
        self._attention = paged_attention(config, device, dtype)
        self._ops = layer_ops(config.norm_epsilon, config.moe.top_k, config.moe.num_experts, device)
        # [experts, hidden] each
        self._routers = [self._ops.router(layer.router.dequantize(torch.float32)) for layer in layers]
        # A layer's output goes through the next one's norm at once, the last one's through the final norm.
        self._next_norms = [*(layer.input_layernorm for layer in layers[1:]), final_norm]

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """dtype: of the activations, the checkpoint's own by default. On a CPU the weights stay memory-mapped.

        Raises CheckpointError when a tensor is missing or wrong, or in a layout that only TensorRT-LLM reads.
        """
        checkpoint.validate()
        config = checkpoint.config
        device = torch.device(device)
        dtype = dtype or config.torch_dtype
        weights = WeightLoader(checkpoint, device, dtype)
        layers = [load_layer(weights, f"transformer.layers.{i}") for i in range(config.num_hidden_layers)]
        embedding = weights.tensor("transformer.vocab_embedding.weight")
        lm_head = weights.lm_head(dtype)
        return cls(config, embedding, layers, weights.norm("transformer.ln_f"), lm_head, device, dtype)

    @property
    def recordable(self) -> bool:
        """Whether a step of decoding is launched without waiting for the device, so that a CUDA graph can hold it."""
        on_kernels = gpu_kernels_serve(self.device) and not isinstance(self._attention, PlainAttention)
        return on_kernels and all(layer.experts.fused for layer in self._layers)

    def new_cache(self, total_blocks: int) -> KvCache:
        """An empty cache in the dtype, and with the scales, that the checkpoint says."""
        scales = [layer.kv_scale for layer in self._layers if layer.kv_scale is not None]
        return KvCache(self.config, total_blocks, self.device, self.dtype, torch.cat(scales) if scales else None)

    def forward(self, batch: Batch, cache: KvCache) -> Tensor:
        """Writes the batch's keys and values into the cache and returns [tokens, hidden], ready for `logits`."""
        ops = self._ops
        first_norm = self._layers[0].input_layernorm
        x, normed = ops.embed_norm(batch.token_ids, self._embedding, first_norm, self.dtype)  # [tokens, hidden] each
        for i, layer in enumerate(self._layers):
            attended = self._attention(i, layer.qkv(normed), cache, batch)
            attended = layer.dense(attended)
            x, normed, *routed = ops.add_norm_route(x, attended, layer.post_layernorm, self._routers[i])
            x, normed = ops.add_norm(x, layer.experts(normed, *routed), self._next_norms[i])
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] of `forward` -> [rows, vocab] float32."""
        return self._lm_head(hidden).float()

    @torch.inference_mode()
    def forward_logits(self, token_ids: list[int]) -> Tensor:
        """The logits after every token of one whole sequence, [tokens, vocab] float32.

        Raises InvalidArgument when it is empty or longer than the model's positions.
        """
        positions = self.config.max_position_embeddings
        if not 1 <= len(token_ids) <= positions:
            raise InvalidArgument(f"the sequence has {len(token_ids)} tokens, it must have from 1 to {positions}")
        blocks = list(range(blocks_for(len(token_ids))))
        cache = self.new_cache(len(blocks))
        logits = []
        for start in range(0, len(token_ids), EVALUATION_CHUNK):
            builder = BatchBuilder()
            builder.add(token_ids[start : start + EVALUATION_CHUNK], start, blocks)
            logits.append(self.logits(self.forward(builder.build(self.device), cache)))
        return torch.cat(logits)


def load_layer(weights: WeightLoader, prefix: str) -> Layer:
    """prefix: such as `transformer.layers.0`."""
    return Layer(
        input_layernorm=weights.norm(f"{prefix}.input_layernorm"),
        qkv=weights.linear(f"{prefix}.attention.qkv"),
        dense=weights.linear(f"{prefix}.attention.dense"),
        post_layernorm=weights.norm(f"{prefix}.post_layernorm"),
        router=weights.dense(f"{prefix}.mlp.router", torch.float32),
        experts=weights.experts(f"{prefix}.mlp"),
        kv_scale=weights.kv_scale(f"{prefix}.attention"),
    )
