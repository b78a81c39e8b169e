"""Directories that appear complete or not at all, and whose making survives being killed.

While TARGET is made there is `.TARGET.partial` beside it (a rename works within one file system only):

    files/          what becomes TARGET
    journal.jsonl   what is being made, and which steps of it are finished
    artifacts/      intermediate results, such as a calibration, that a resumed run does not compute again
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from mixtral_build.journal import Journal
from mixtral_runtime.errors import InvalidArgument, MixtralError, StorageError

FILES_NAME = "files"
JOURNAL_NAME = "journal.jsonl"
ARTIFACTS_NAME = "artifacts"
Notify = Callable[[str], object]


class Staging:
    """directory: put the target's files there. finished: the record of every step that `finish` was called with, now or
    in the run that this one continues; not to be done again."""

    def __init__(self, work: Path, journal: Journal) -> None:
        self.directory = work / FILES_NAME
        self._artifacts = work / ARTIFACTS_NAME
        self._journal = journal

    @property
    def finished(self) -> Mapping[str, Any]:
        return self._journal.entries

    def finish(self, step: str, record: Any = None) -> None:
        """Everything that belongs to the step must be on disk (fsync) when this is called: after a crash the next run
        relies on it. record: anything that JSON holds."""
        self._journal.append(step, record)

    def load_artifact(self, name: str) -> dict[str, Tensor] | None:
        """What `save_artifact` stored under this name, bit for bit, or None when there is nothing yet.

            scales = staging.load_artifact("calibration")
            if scales is None:
                scales = calibrate(...)
                staging.save_artifact("calibration", scales)

        The key that the directory was opened with must contain everything the artifact depends on.
        """
        path = self._artifacts / f"{name}.safetensors"
        return load_file(path) if path.is_file() else None

    def save_artifact(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """On disk, whole, when this returns. Several, such as one per layer, make long work resumable in between."""
        path = self._artifacts / f"{name}.safetensors"
        temporary = path.with_suffix(".tmp")
        # Not save_file, which does not raise OSError on a full disk.
        temporary.write_bytes(save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}))
        fsync_path(temporary)
        temporary.rename(path)
        fsync_path(self._artifacts)

    def check_space(self, size: int) -> None:
        """Raises StorageError when `size` bytes do not fit, those that a killed run left counted as free."""
        present = sum(path.stat().st_blocks * 512 for path in self.directory.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.directory).free + present
        if size > free:
            raise StorageError(
                f"{self.directory.parent.parent} has {free / 1e6:.1f} MB free, {size / 1e6:.1f} MB are needed"
            )


@contextmanager
def staged(
    target: Path, key: dict[str, Any], notify: Notify | None = None, *, replace_holding: str | None = None
) -> Iterator[Staging]:
    """Gives a Staging whose `directory` is renamed to `target` when the body ends.

    key: everything that the result depends on, anything that JSON holds. A run that finds the work of a killed one with
    the same key continues it; with another key it says so through `notify` and starts anew. A MixtralError in the body
    removes the work, because the same input fails the same way; after anything else (disk full, interrupted, killed)
    finished steps are kept for the next run. A lock keeps a second run out. An existing target is replaced at the end
    if it holds the file `replace_holding`, by which it is known to be of the same kind.
    Raises InvalidArgument when the target exists otherwise or is being made, StorageError for what the disk refuses.
    """
    try:
        with _locked_work_directory(target, replace_holding) as work:
            with Journal(work / JOURNAL_NAME) as journal, _kept_if_resumable(work, journal):
                _continue_or_begin(work, journal, key, notify)
                staging = Staging(work, journal)
                yield staging
                _publish(staging.directory, target, replace=replace_holding is not None)
            shutil.rmtree(work, ignore_errors=True)  # the target is complete; a later run removes what remains
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StorageError(f"{target} could not be made: {error.strerror or error}{where}{_advice(target)}") from error
    except KeyboardInterrupt:
        if notify is not None and (advice := _advice(target)):
            notify(advice.removeprefix("; "))
        raise


@contextmanager
def staged_directory(target: Path, *, replace_holding: str | None = None) -> Iterator[Path]:
    """An empty directory that is renamed to `target` when the body ends, for work that is not worth resuming.

    replace_holding and errors as in `staged`.
    """
    with staged(target, {"resumable": False}, replace_holding=replace_holding) as staging:
        _empty(staging.directory)
        yield staging.directory


def fsync_path(path: Path) -> None:
    """Of a file its contents, of a directory its entries."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _work_directory(target: Path) -> Path:
    return target.parent / f".{target.name}.partial"


def _advice(target: Path) -> str:
    work = _work_directory(target)
    return f"; what is finished is kept in {work}, the same command continues" if work.exists() else ""


@contextmanager
def _locked_work_directory(target: Path, replace_holding: str | None) -> Iterator[Path]:
    work = _work_directory(target)
    if not work.exists():
        _check_target(target, replace_holding)
    work.mkdir(parents=True, exist_ok=True)
    lock = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _being_made(target) from error
        try:
            _check_target(target, replace_holding)
        except InvalidArgument:
            # A run was killed after the rename, or ended since we looked: only its leavings remain.
            if not (work / FILES_NAME).exists():
                shutil.rmtree(work, ignore_errors=True)
            raise
        if not work.exists() or not os.path.samestat(os.fstat(lock), work.stat()):  # removed before we had the lock
            raise _being_made(target)
        yield work
    finally:
        os.close(lock)


def _continue_or_begin(work: Path, journal: Journal, key: dict[str, Any], notify: Notify | None) -> None:
    key = json.loads(json.dumps(key))  # as it reads back
    if journal.key != key or not (work / FILES_NAME).is_dir():
        if journal.key is not None and journal.key != key and notify is not None:
            notify(f"starting anew: {work} was begun from another model or with other options")
        journal.begin(None)  # should emptying be interrupted, what remains counts for nothing
        _empty(work, JOURNAL_NAME)
        for name in (FILES_NAME, ARTIFACTS_NAME):
            (work / name).mkdir()
        journal.begin(key)


@contextmanager
def _kept_if_resumable(work: Path, journal: Journal) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        final = isinstance(error, MixtralError) and not isinstance(error, StorageError)
        if final or not (journal.entries or any((work / ARTIFACTS_NAME).iterdir())):
            shutil.rmtree(work, ignore_errors=True)
        raise


def _check_target(target: Path, replace_holding: str | None) -> None:
    if not target.exists():
        return
    if replace_holding is None:
        raise InvalidArgument(f"{target} exists already; remove it or choose another directory")
    if not (target / replace_holding).is_file():
        raise InvalidArgument(f"{target} exists and has no {replace_holding}; choose another directory")


def _being_made(target: Path) -> InvalidArgument:
    return InvalidArgument(f"{target} is being made by another process")


def _publish(files: Path, target: Path, *, replace: bool) -> None:
    """After a power failure the target must not exist with files that are not on disk."""
    for path in sorted(files.rglob("*")):
        fsync_path(path)
    fsync_path(files)
    old = target.parent / f".{target.name}.old"
    if replace:
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
    files.rename(target)
    fsync_path(target.parent)
    if replace:
        shutil.rmtree(old, ignore_errors=True)


def _empty(directory: Path, *but: str) -> None:
    for path in directory.iterdir():
        if path.name in but:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
