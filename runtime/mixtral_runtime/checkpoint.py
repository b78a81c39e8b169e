"""A checkpoint directory: `config.json`, one `rankN.safetensors` per rank, and `tokenizer/`."""

import json
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.formats import TensorSpec
from mixtral_runtime.safetensors_reader import SafetensorsFile
from mixtral_runtime.tensor_names import KV_RECIPROCAL_SCALE, expected_specs

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "rank0.safetensors"
TOKENIZER_NAME = "tokenizer"


def weights_name(rank: int) -> str:
    return f"rank{rank}.safetensors"


class Checkpoint:
    """An opened checkpoint. Weights stay on disk until they are used: `tensor` gives views of the mapped file."""

    def __init__(self, directory: Path, config: CheckpointConfig, ranks: list[SafetensorsFile]) -> None:
        self.directory = directory
        self.config = config
        self._ranks = ranks

    @classmethod
    def open(cls, directory: Path | str) -> Self:
        """Raises CheckpointError when a file is missing, damaged, or describes another model than a Mixtral."""
        directory = Path(directory)
        data = read_config(directory)
        try:
            config = CheckpointConfig.from_json(data)
        except CheckpointError as error:
            raise CheckpointError(f"{directory / CONFIG_NAME}: {error}") from error
        ranks = [SafetensorsFile(directory / weights_name(rank)) for rank in range(config.mapping.world_size)]
        return cls(directory, config, ranks)

    def names(self) -> frozenset[str]:
        """The same in every rank's file."""
        return self._ranks[0].names()

    def spec(self, name: str) -> TensorSpec:
        return self._ranks[0].spec(name)

    def tensor(self, name: str, rank: int = 0) -> Tensor:
        """Shape and dtype as in `mixtral_runtime.tensor_names`, on the CPU; do not write to it."""
        file = self._ranks[rank]
        if name not in file.names():
            raise CheckpointError(f"{file.path} has no tensor {name}")
        return file.tensor(name)

    def validate(self) -> None:
        """Compares the files' headers with what the config demands. Raises CheckpointError for the first tensor that is
        missing, of another shape or dtype, or superfluous."""
        try:
            expected = expected_specs(self.config)
        except InvalidArgument as error:
            raise CheckpointError(f"{self.directory / CONFIG_NAME}: {error}") from error
        for file in self._ranks:
            _check_specs(file, expected)


def _check_specs(file: SafetensorsFile, expected: list[TensorSpec]) -> None:
    for spec in expected:
        # TensorRT-LLM derives it when it is not there, and ModelOpt leaves it out.
        if spec.name not in file.names() and spec.name.endswith(KV_RECIPROCAL_SCALE):
            continue
        if spec.name not in file.names():
            raise CheckpointError(f"{file.path} has no tensor {spec.name}")
        check_spec(file.path, file.spec(spec.name), spec)
    superfluous = sorted(file.names() - {spec.name for spec in expected})
    if superfluous:
        raise CheckpointError(f"{file.path} has a tensor that does not belong there, {superfluous[0]}")


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
