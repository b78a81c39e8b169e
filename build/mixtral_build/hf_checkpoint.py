"""A Hugging Face model directory: `config.json`, one or many safetensors files, tokenizer files."""

import hashlib
import json
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from mixtral_runtime.checkpoint import CONFIG_NAME, check_spec, read_config
from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.formats import TensorSpec
from mixtral_runtime.safetensors_reader import SafetensorsFile

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
    "generation_config.json",
)


class HfCheckpoint:
    """An opened model. Weights stay on disk until they are used."""

    def __init__(self, directory: Path, config: dict[str, Any], files: list[SafetensorsFile]) -> None:
        self.directory = directory
        self.config = config
        self._files = files
        self._by_name = {name: file for file in files for name in file.names()}

    @classmethod
    def open(cls, directory: Path | str) -> Self:
        """Raises CheckpointError when the directory, its config, its index or a shard is missing or damaged."""
        directory = Path(directory)
        config = read_config(directory)
        return cls(directory, config, [SafetensorsFile(directory / name) for name in _shard_names(directory)])

    def tensor(self, expected: TensorSpec) -> Tensor:
        """The tensor of that name as a view of the mapped file, in its own dtype.

        Raises CheckpointError when it is missing, of another shape, or not a floating-point tensor of 16 or 32 bits.
        """
        file = self._by_name.get(expected.name)
        if file is None:
            raise CheckpointError(f"{self.directory} has no tensor {expected.name}")
        found = file.spec(expected.name)
        check_spec(file.path, TensorSpec(found.name, found.shape, expected.dtype), expected)
        if not found.dtype.is_floating_point or found.dtype.itemsize < 2:
            raise CheckpointError(
                f"{file.path}: {found.name} has dtype {found.dtype}, only models in 16 or 32 bits can be quantised"
            )
        return file.tensor(expected.name)

    def tokenizer_files(self) -> list[Path]:
        """Those that exist. Raises CheckpointError when there is no vocabulary at all."""
        found = [path for name in TOKENIZER_FILES if (path := self.directory / name).is_file()]
        if not {"tokenizer.json", "tokenizer.model"} & {path.name for path in found}:
            raise CheckpointError(f"{self.directory} has neither tokenizer.json nor tokenizer.model")
        return found

    def fingerprint(self) -> str:
        """SHA-256 over the config and over names, shapes, dtypes and sizes of the shards and what is in them: cheap,
        and another model or another revision with other dimensions gives another one."""
        digest = hashlib.sha256((self.directory / CONFIG_NAME).read_bytes())
        for file in self._files:
            digest.update(f"{file.path.name} {file.path.stat().st_size}\n".encode())
            for name in sorted(file.names()):
                spec = file.spec(name)
                digest.update(f"{name} {list(spec.shape)} {spec.dtype}\n".encode())
        return digest.hexdigest()


def _shard_names(directory: Path) -> list[str]:
    index = directory / INDEX_NAME
    if not index.is_file():
        if not (directory / SINGLE_NAME).is_file():
            raise CheckpointError(f"{directory} has neither {SINGLE_NAME} nor {INDEX_NAME}")
        return [SINGLE_NAME]
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors files") from error
