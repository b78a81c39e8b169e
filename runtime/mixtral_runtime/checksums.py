"""A checkpoint's `sha256.json`: the SHA-256 of every file, and of every tensor in the files of weights."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.manifest import file_sha256
from mixtral_runtime.safetensors_reader import SafetensorsFile, tensor_bytes

CHECKSUMS_NAME = "sha256.json"
FORMAT_VERSION = 1
Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Checksums:
    """files: by name relative to the directory. tensors: for each file of weights, by tensor. All in hexadecimal.

    Weights are hashed tensor by tensor because they are written so, in any order: nothing is read a second time, and a
    damaged tensor is known by name.
    """

    files: dict[str, str]
    tensors: dict[str, dict[str, str]]
    format_version: int = FORMAT_VERSION

    def write(self, directory: Path) -> None:
        (directory / CHECKSUMS_NAME).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Self | None:
        """None when there is no such file, as in what NVIDIA's tools write. Raises CheckpointError for another one."""
        path = directory / CHECKSUMS_NAME
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version, files, tensors = data["format_version"], dict(data["files"]), dict(data["tensors"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is not a list of checksums") from error
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{path} has format_version {version}, this program reads {FORMAT_VERSION}")
        return cls(files, tensors)

    def check(self, directory: Path, progress: Progress | None = None) -> None:
        """progress: told the bytes read. Raises CheckpointError for the first file or tensor that differs."""
        for name, expected in self.files.items():
            path = directory / name
            if not path.is_file():
                raise CheckpointError(f"{path} does not exist, {CHECKSUMS_NAME} lists it")
            if (found := file_sha256(path, progress)) != expected:
                raise CheckpointError(f"{path} is damaged: SHA-256 {found}, it was written with {expected}")
        for name, tensors in self.tensors.items():
            file = SafetensorsFile(directory / name)
            for tensor_name, expected in tensors.items():
                if tensor_name not in file.names():
                    raise CheckpointError(f"{file.path} has no tensor {tensor_name}")
                tensor = file.tensor(tensor_name)
                if (found := tensor_sha256(tensor)) != expected:
                    raise CheckpointError(
                        f"{file.path}: {tensor_name} is damaged: SHA-256 {found}, it was written with {expected}"
                    )
                if progress is not None:
                    progress(tensor.nbytes)


def tensor_sha256(tensor: Tensor) -> str:
    """Of its bytes as they are stored."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()
