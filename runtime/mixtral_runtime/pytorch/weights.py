"""From a checkpoint's tensors to the Linear objects of a model."""

import torch
from torch import Tensor

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.formats import Linear, get_format
from mixtral_runtime.tensor_names import checkpoint_format


class WeightLoader:
    """dtype: of the activations. Names are TensorRT-LLM's, given without the tensor's suffix (`…attention.qkv`)."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self._checkpoint = checkpoint
        self._format = checkpoint_format(checkpoint.config)
        self._dense = get_format("16bit")
        self._device = device
        self._dtype = dtype

    def tensor(self, name: str) -> Tensor:
        return self._checkpoint.tensor(name).to(self._device)

    def norm(self, name: str) -> Tensor:
        """[hidden] float32, the precision in which norms are computed."""
        return self.tensor(f"{name}.weight").float()

    def dense(self, name: str, dtype: torch.dtype) -> Linear:
        """A matrix that no format replaces: router and lm_head."""
        return self._dense.linear({"weight": self.tensor(f"{name}.weight")}, dtype)

    def linear(self, name: str) -> Linear:
        return self._format.linear(self._quantized(name), self._dtype)

    def experts(self, name: str) -> list[Linear]:
        """One Linear per expert, over views of the stacked tensors."""
        stacked = self._quantized(name)
        count = self._checkpoint.config.moe.num_experts
        return [self._format.linear({k: t[i] for k, t in stacked.items()}, self._dtype) for i in range(count)]

    def _quantized(self, name: str) -> dict[str, Tensor]:
        """The tensors that the format made of a weight, by suffix."""
        weight = f"{name}.weight"
        stored = self._checkpoint.spec(weight)
        specs = self._format.specs(weight, stored.shape, self._checkpoint.config.torch_dtype)
        return {spec.name.removeprefix(f"{name}."): self.tensor(spec.name) for spec in specs}
