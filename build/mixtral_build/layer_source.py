"""Where layer-by-layer execution gets its weights: one layer at a time, from a Hugging Face model or a checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtral_build.hf_checkpoint import HfCheckpoint
from mixtral_build.linear_around import LinearAround
from mixtral_runtime.checkpoint import CONFIG_NAME, Checkpoint
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.formats import Linear
from mixtral_runtime.formats.fp8 import Fp8Linear
from mixtral_runtime.pytorch.experts import Experts
from mixtral_runtime.pytorch.model import Layer, load_layer
from mixtral_runtime.pytorch.weights import WeightLoader
from mixtral_runtime.tensor_names import Weight, weights


class LayerSource(Protocol):
    """A model whose layers are loaded when they are asked for and freed when the caller drops them.

    dtype: of the activations. The layers' Linear objects take any number of rows at once and do not promise that rows
    are independent of each other bit for bit.
    """

    config: CheckpointConfig
    device: torch.device
    dtype: torch.dtype

    def embedding(self) -> Tensor:
        """[vocab, hidden], in the stored dtype."""
        ...

    def layer(self, index: int) -> Layer: ...

    def head(self) -> tuple[Tensor, Linear]:
        """The final norm's weight, [hidden] float32, and lm_head."""
        ...


@dataclass(frozen=True, slots=True)
class RowsLinear:
    """A weight of 16 or 32 bits whose rows lie in several tensors, each [some of out, in].

    They stay where they are, on a CPU in the mapped file, and are converted for the time of a product: so a layer costs
    no memory but that of its largest matrix, and none at all when the dtypes are the same.
    """

    parts: tuple[Tensor, ...]

    @property
    def out_features(self) -> int:
        return sum(part.shape[0] for part in self.parts)

    @property
    def in_features(self) -> int:
        return self.parts[0].shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([F.linear(x, part.to(x.dtype)) for part in self.parts], dim=-1)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return torch.cat([part.to(dtype) for part in self.parts])


@dataclass(frozen=True, slots=True)
class UntiledLinear(LinearAround):
    """A checkpoint's Linear, multiplied as one large matrix product: many rows at once are what layer-by-layer
    execution has, and what the tiles of the engine's row independence would slow down most."""

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(self.linear, Fp8Linear):  # it rounds its input as well
            return self.linear.multiply(x, F.linear)
        return F.linear(x, self.linear.dequantize(x.dtype))


class HfLayerSource:
    """A Hugging Face model in 16 or 32 bits. experts_per_token: None keeps the model's own routing width."""

    def __init__(
        self,
        model_dir: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        experts_per_token: int | None = None,
    ) -> None:
        """Raises CheckpointError when the directory is not a complete Mixtral."""
        self._model = HfCheckpoint.open(model_dir)
        try:
            config = CheckpointConfig.from_hf(self._model.config)
            if experts_per_token is not None:
                config = replace(config, moe=replace(config.moe, top_k=experts_per_token))
        except CheckpointError as error:
            raise CheckpointError(f"{self._model.directory / CONFIG_NAME}: {error}") from error
        self.config = config
        self.device = torch.device(device)
        self.dtype = dtype
        self._weights: dict[str, Weight] = {weight.name: weight for weight in weights(config)}

    def embedding(self) -> Tensor:
        return self._tensor("transformer.vocab_embedding.weight")

    def layer(self, index: int) -> Layer:
        prefix = f"transformer.layers.{index}"
        return Layer(
            input_layernorm=self._tensor(f"{prefix}.input_layernorm.weight").float(),
            qkv=self._linear(f"{prefix}.attention.qkv.weight"),
            dense=self._linear(f"{prefix}.attention.dense.weight"),
            post_layernorm=self._tensor(f"{prefix}.post_layernorm.weight").float(),
            router=self._linear(f"{prefix}.mlp.router.weight"),
            experts=Experts(self._experts(f"{prefix}.mlp.fc.weight"), self._experts(f"{prefix}.mlp.proj.weight")),
        )

    def head(self) -> tuple[Tensor, Linear]:
        return self._tensor("transformer.ln_f.weight").float(), self._linear("lm_head.weight")

    def _experts(self, name: str) -> list[Linear]:
        return [self._linear(name, expert) for expert in range(self.config.moe.num_experts)]

    def _linear(self, name: str, expert: int = 0) -> Linear:
        parts = self._weights[name].parts[expert]
        return RowsLinear(tuple(self._model.tensor(part).to(self.device) for part in parts))

    def _tensor(self, name: str) -> Tensor:
        return self._model.tensor(self._weights[name].parts[0][0]).to(self.device)


class CheckpointLayerSource:
    """A checkpoint, or an engine directory of the PyTorch runtime, of any precision that the runtime multiplies."""

    def __init__(
        self, checkpoint_dir: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Raises CheckpointError when a tensor is missing or wrong."""
        checkpoint = Checkpoint.open(checkpoint_dir)
        checkpoint.validate()
        self.config = checkpoint.config
        self.device = torch.device(device)
        self.dtype = dtype
        # Loaded in the checkpoint's own dtype, so that mapped weights are not copied; products convert as they need.
        self._weights = WeightLoader(checkpoint, self.device, self.config.torch_dtype)

    def embedding(self) -> Tensor:
        return self._weights.tensor("transformer.vocab_embedding.weight")

    def layer(self, index: int) -> Layer:
        layer = load_layer(self._weights, f"transformer.layers.{index}")
        return replace(
            layer,
            qkv=UntiledLinear(layer.qkv),
            dense=UntiledLinear(layer.dense),
            router=UntiledLinear(layer.router),
            experts=Experts(
                [UntiledLinear(linear) for linear in layer.experts.fc],
                [UntiledLinear(linear) for linear in layer.experts.proj],
            ),
        )

    def head(self) -> tuple[Tensor, Linear]:
        lm_head = self._weights.lm_head(self.config.torch_dtype)
        return self._weights.norm("transformer.ln_f"), UntiledLinear(lm_head)
