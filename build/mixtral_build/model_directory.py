"""What `evaluate` and `compare` take: a Hugging Face model, a checkpoint, or an engine of the PyTorch runtime."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from transformers import PreTrainedTokenizerFast

from mixtral_build.layer_source import CheckpointLayerSource, HfLayerSource, LayerSource
from mixtral_runtime.checkpoint import TOKENIZER_NAME, read_config
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.manifest import MANIFEST_NAME, Manifest
from mixtral_runtime.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """Nothing of it is loaded yet."""

    directory: Path
    kind: Literal["model", "checkpoint", "engine"]

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Raises CheckpointError for a directory without a config.json, InvalidArgument for an engine whose weights
        another runtime than PyTorch owns."""
        if (directory / MANIFEST_NAME).is_file():
            runtime = Manifest.load(directory).runtime
            if runtime != "pytorch":
                raise InvalidArgument(
                    f"{directory} is an engine for {runtime}; only those for pytorch can be measured here, "
                    f"take the checkpoint it was built from"
                )
            return cls(directory, "engine")
        # TensorRT-LLM's config has `architecture`, Hugging Face's `architectures`.
        return cls(directory, "checkpoint" if "architecture" in read_config(directory) else "model")

    def layers(self, device: torch.device, dtype: torch.dtype) -> LayerSource:
        """dtype: of the computation. Raises CheckpointError when the directory is not a complete Mixtral."""
        source = HfLayerSource if self.kind == "model" else CheckpointLayerSource
        return source(self.directory, device, dtype)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return load_tokenizer(self.directory if self.kind == "model" else self.directory / TOKENIZER_NAME)
