"""A Hugging Face model directory: `config.json`, one or many safetensors files, tokenizer files."""

import hashlib
import json
import math
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
        index = _read_index(directory)
        files = [SafetensorsFile(directory / name) for name in sorted(set(index.values()) or {SINGLE_NAME})]
        if index:
            _check_index(directory / INDEX_NAME, index, files)
        return cls(directory, config, files)

    def tensor(self, expected: TensorSpec) -> Tensor:
        """The tensor of that name as a view of the mapped file, in its own dtype. Errors as `check`."""
        self.check(expected)
        return self._file_of(expected.name).tensor(expected.name)

    def check(self, expected: TensorSpec) -> None:
        """Raises CheckpointError when there is no such tensor, when it has another shape, or when it is not one of
        floating-point numbers of 16 or 32 bits."""
        file = self._file_of(expected.name)
        found = file.spec(expected.name)
        check_spec(file.path, TensorSpec(found.name, found.shape, expected.dtype), expected)
        if not found.dtype.is_floating_point or found.dtype.itemsize < 2:
            raise CheckpointError(
                f"{file.path}: {found.name} has dtype {found.dtype}, only models in 16 or 32 bits can be quantised"
            )

    def stored(self, expected: TensorSpec) -> Tensor:
        """The tensor of that name, which must have that shape and dtype, as a view of the mapped file."""
        file = self._file_of(expected.name)
        check_spec(file.path, file.spec(expected.name), expected)
        return file.tensor(expected.name)

    def scalar(self, name: str) -> Tensor:
        """[1] float32, of a floating-point tensor that has one element in whatever shape."""
        file = self._file_of(name)
        found = file.spec(name)
        if math.prod(found.shape) != 1 or not found.dtype.is_floating_point:
            raise CheckpointError(f"{file.path}: {name} has shape {list(found.shape)}, it must have one element")
        return file.tensor(name).float().reshape(1)

    def tokenizer_files(self) -> list[Path]:
        """Those that exist. Raises CheckpointError when there is no vocabulary at all."""
        found = [path for name in TOKENIZER_FILES if (path := self.directory / name).is_file()]
        if not {"tokenizer.json", "tokenizer.model"} & {path.name for path in found}:
            raise CheckpointError(f"{self.directory} has neither tokenizer.json nor tokenizer.model")
        return found

    def names(self) -> frozenset[str]:
        return frozenset(self._by_name)

    def nbytes(self) -> int:
        """Of all its tensors."""
        return sum(file.spec(name).nbytes for name, file in self._by_name.items())

    def identity(self) -> list[object]:
        """Fingerprint and what changes when a shard is replaced by one of the same size; for this machine only."""
        stats = [(file.path.name, file.path.stat()) for file in self._files]
        return [self.fingerprint(), [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]

    def _file_of(self, name: str) -> SafetensorsFile:
        if name not in self._by_name:
            raise CheckpointError(f"{self.directory} has no tensor {name}")
        return self._by_name[name]

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


def _read_index(directory: Path) -> dict[str, str]:
    """The shard of each tensor; empty for a model in one file."""
    path = directory / INDEX_NAME
    if not path.is_file():
        if not (directory / SINGLE_NAME).is_file():
            raise CheckpointError(f"{directory} has neither {SINGLE_NAME} nor {INDEX_NAME}")
        return {}
    try:
        index = {str(name): str(shard) for name, shard in json.loads(path.read_text("utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not an index of safetensors files") from error
    if not index:
        raise CheckpointError(f"{path} names no tensors")
    return index


def _check_index(path: Path, index: dict[str, str], files: list[SafetensorsFile]) -> None:
    """Shards of two models, or of two revisions of one, can be mixed up without anything else showing it."""
    for file in files:
        named = {name for name, shard in index.items() if shard == file.path.name}
        if missing := sorted(named - file.names()):
            raise CheckpointError(f"{path} disagrees with the shards: {missing[0]} is not in {file.path.name}")
        if extra := sorted(file.names() - named):
            raise CheckpointError(f"{path} disagrees with the shards: {file.path.name} has {extra[0]}, not named there")
