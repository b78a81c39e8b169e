"""A checkpoint directory: `config.json`, `rank0.safetensors` and `tokenizer/`."""

import json
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.formats import TensorSpec
from mixtral_runtime.safetensors_reader import SafetensorsFile
from mixtral_runtime.tensor_names import expected_specs

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "rank0.safetensors"
TOKENIZER_NAME = "tokenizer"


class Checkpoint:
    """An opened checkpoint. Weights stay on disk until they are used: `tensor` gives views of the mapped file."""

    def __init__(self, directory: Path, config: CheckpointConfig, weights: SafetensorsFile) -> None:
        self.directory = directory
        self.config = config
        self._weights = weights

    @classmethod
    def open(cls, directory: Path | str) -> Self:
        """Raises CheckpointError when a file is missing, damaged, or describes another model than a Mixtral."""
        directory = Path(directory)
        data = read_config(directory)
        try:
            config = CheckpointConfig.from_json(data)
        except CheckpointError as error:
            raise CheckpointError(f"{directory / CONFIG_NAME}: {error}") from error
        return cls(directory, config, SafetensorsFile(directory / WEIGHTS_NAME))

    def names(self) -> frozenset[str]:
        return self._weights.names()

    def spec(self, name: str) -> TensorSpec:
        return self._weights.spec(name)

    def tensor(self, name: str) -> Tensor:
        """Shape and dtype as in `mixtral_runtime.tensor_names`, on the CPU; do not write to it."""
        if name not in self.names():
            raise CheckpointError(f"{self._weights.path} has no tensor {name}")
        return self._weights.tensor(name)

    def validate(self) -> None:
        """Compares the file's header with what the config demands. Raises CheckpointError for the first tensor that is
        missing, of another shape or dtype, or superfluous."""
        path = self._weights.path
        try:
            expected = expected_specs(self.config)
        except InvalidArgument as error:
            raise CheckpointError(f"{self.directory / CONFIG_NAME}: {error}") from error
        for spec in expected:
            if spec.name not in self.names():
                raise CheckpointError(f"{path} has no tensor {spec.name}")
            check_spec(path, self.spec(spec.name), spec)
        superfluous = sorted(self.names() - {spec.name for spec in expected})
        if superfluous:
            raise CheckpointError(f"{path} has a tensor that does not belong there, {superfluous[0]}")


def check_spec(path: Path, found: TensorSpec, expected: TensorSpec) -> None:
    if found.shape != expected.shape:
        raise CheckpointError(
            f"{path}: {found.name} has shape {list(found.shape)}, it must have {list(expected.shape)}"
        )
    if found.dtype != expected.dtype:
        raise CheckpointError(f"{path}: {found.name} has dtype {found.dtype}, it must have {expected.dtype}")


def read_config(directory: Path) -> dict[str, Any]:
    """The JSON object in the directory's `config.json`."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory")
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data
