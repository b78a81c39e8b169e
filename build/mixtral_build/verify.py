"""Whether a checkpoint or engine directory is complete and undamaged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.manifest import MANIFEST_NAME, Manifest, ModelInfo
from mixtral_runtime.tensor_names import checkpoint_format


@dataclass(frozen=True, slots=True)
class VerifySummary:
    """kind: "checkpoint" or "engine". tensors: how many were compared with what the config demands, none where another
    runtime than PyTorch owns the weights. files: how many were compared with their SHA-256."""

    directory: str
    kind: str
    precision: str
    tensors: int
    files: int


def verify_directory(directory: Path, progress: Callable[[int, int], object] | None = None) -> VerifySummary:
    """Structure, and for an engine the contents of every file. progress: bytes read and their total.

    Raises CheckpointError for the first thing that is wrong.
    """
    if not (directory / MANIFEST_NAME).exists():
        checkpoint = _check_structure(directory)
        precision = checkpoint_format(checkpoint.config).name
        return VerifySummary(str(directory), "checkpoint", precision, len(checkpoint.names()), files=0)
    manifest = Manifest.load(directory)
    _check_contents(manifest, directory, progress)
    tensors = 0
    if manifest.runtime == "pytorch":
        checkpoint = _check_structure(directory)
        tensors = len(checkpoint.names())
        if manifest.model != ModelInfo.of(checkpoint.config):
            raise CheckpointError(f"{directory}: the manifest describes another model than config.json; build it again")
    return VerifySummary(str(directory), "engine", manifest.precision, tensors, len(manifest.files))


def _check_structure(directory: Path) -> Checkpoint:
    checkpoint = Checkpoint.open(directory)
    checkpoint.validate()
    return checkpoint


def _check_contents(manifest: Manifest, directory: Path, progress: Callable[[int, int], object] | None) -> None:
    total = sum(info.size for info in manifest.files.values())
    done = 0

    def advance(read: int) -> None:
        nonlocal done
        done += read
        if progress is not None:
            progress(done, total)

    manifest.check_files(directory, sha256=True, progress=advance)
