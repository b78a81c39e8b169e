"""Whether a checkpoint or engine directory is complete and undamaged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.checksums import Checksums
from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.manifest import MANIFEST_NAME, Manifest, ModelInfo
from mixtral_runtime.tensor_names import checkpoint_format


@dataclass(frozen=True, slots=True)
class VerifySummary:
    """kind: "checkpoint" or "engine". tensors: how many, in the files of all ranks, were compared with what the config
    demands; none where another runtime than PyTorch owns the weights. files: how many were compared with their SHA-256;
    none in a checkpoint that another tool wrote."""

    directory: str
    kind: str
    precision: str
    tensors: int
    files: int


def verify_directory(directory: Path, progress: Callable[[int, int], object] | None = None) -> VerifySummary:
    """Structure and the contents of every file. progress: bytes read and their total.

    Raises CheckpointError for the first thing that is wrong; in a checkpoint, it names the tensor.
    """
    if not (directory / MANIFEST_NAME).exists():
        return _verify_checkpoint(directory, progress)
    manifest = Manifest.load(directory)
    total = sum(info.size for info in manifest.files.values())
    manifest.check_files(directory, sha256=True, progress=_counted(progress, total))
    tensors = 0
    if manifest.runtime == "pytorch":
        checkpoint = _check_structure(directory)
        tensors = len(checkpoint.names())
        if manifest.model != ModelInfo.of(checkpoint.config):
            raise CheckpointError(f"{directory}: the manifest describes another model than config.json; build it again")
    return VerifySummary(str(directory), "engine", manifest.precision, tensors, len(manifest.files))


def _verify_checkpoint(directory: Path, progress: Callable[[int, int], object] | None) -> VerifySummary:
    checkpoint = _check_structure(directory)
    checksums, files = Checksums.load(directory), 0
    if checksums is not None:
        files = len(checksums.files) + len(checksums.tensors)
        total = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        checksums.check(directory, _counted(progress, total))
    tensors = len(checkpoint.names()) * checkpoint.config.mapping.world_size
    precision = checkpoint_format(checkpoint.config).name
    return VerifySummary(str(directory), "checkpoint", precision, tensors, files)


def _check_structure(directory: Path) -> Checkpoint:
    checkpoint = Checkpoint.open(directory)
    checkpoint.validate()
    return checkpoint


def _counted(progress: Callable[[int, int], object] | None, total: int) -> Callable[[int], None]:
    """A function of the bytes just read."""
    done = 0

    def advance(read: int) -> None:
        nonlocal done
        done += read
        if progress is not None:
            progress(done, total)

    return advance
