"""From a checkpoint's tensors to the Linear objects of a model."""

import torch
from torch import Tensor

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.formats import Linear, get_format
from mixtral_runtime.pytorch.experts import Experts
from mixtral_runtime.tensor_names import KV_SCALE, checkpoint_format, weights


class WeightLoader:
    """dtype: of the activations. Names are TensorRT-LLM's, given without the tensor's suffix (`…attention.qkv`)."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        if (ranks := checkpoint.config.mapping.world_size) > 1:
            raise CheckpointError(
                f"{checkpoint.directory} is split for {ranks} GPUs, the PyTorch runtime uses one; "
                f"quantise the model without --tp-size"
            )
        self._checkpoint = checkpoint
        self._format = checkpoint_format(checkpoint.config)
        self._shapes = {weight.name: weight.shape for weight in weights(checkpoint.config)}
        self._dense = get_format("16bit")
        self._device = device
        self._dtype = dtype

    def tensor(self, name: str) -> Tensor:
        return self._checkpoint.tensor(name).to(self._device)

    def norm(self, name: str) -> Tensor:
        """[hidden] float32, the precision in which norms are computed."""
        return self.tensor(f"{name}.weight").float()

    def dense(self, name: str, dtype: torch.dtype) -> Linear:
        """A matrix that no format replaces, such as the router."""
        return self._dense.linear({"weight": self.tensor(f"{name}.weight")}, dtype)

    def lm_head(self, dtype: torch.dtype) -> Linear:
        """Without the rows that fill the vocabulary up: their tokens do not exist."""
        weight = self.tensor("lm_head.weight")[: self._checkpoint.config.vocab_size]
        return self._dense.linear({"weight": weight}, dtype)

    def linear(self, name: str) -> Linear:
        return self._format.linear(self._quantized(name), self._dtype)

    def experts(self, name: str) -> Experts:
        """name: of the layer's mixture, such as `transformer.layers.0.mlp`."""
        fc, proj = (self._quantized(f"{name}.{matrix}") for matrix in ("fc", "proj"))
        if self._format is self._dense:  # in the activations' dtype once, not for `fused` and again for each expert
            fc, proj = ({suffix: stack.to(self._dtype) for suffix, stack in one.items()} for one in (fc, proj))
        fused = self._format.fused_experts(fc, proj, self._dtype)
        return Experts(self._one_by_one(fc), self._one_by_one(proj), fused)

    def kv_scale(self, name: str) -> Tensor | None:
        """[1] float32 of an attention's FP8 KV cache, None when the cache is in 16 bits."""
        quantized = self._checkpoint.config.quantization.kv_cache_quant_algo is not None
        return self.tensor(f"{name}.{KV_SCALE}") if quantized else None

    def _quantized(self, name: str) -> dict[str, Tensor]:
        """The tensors that the format made of a weight, by suffix."""
        weight = f"{name}.weight"
        specs = self._format.specs(weight, self._shapes[weight], self._checkpoint.config.torch_dtype)
        return {spec.name.removeprefix(f"{name}."): self.tensor(spec.name) for spec in specs}

    def _one_by_one(self, stacked: dict[str, Tensor]) -> list[Linear]:
        """One Linear per expert, over views of the stacked tensors; what is not stacked belongs to all of them."""
        count = self._checkpoint.config.moe.num_experts
        return [
            self._format.linear({k: t[i] if len(t) == count else t for k, t in stacked.items()}, self._dtype)
            for i in range(count)
        ]
