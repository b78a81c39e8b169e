"""Directories that appear complete or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixtral_runtime.errors import InvalidArgument


@contextmanager
def staged_directory(target: Path, *, replace_holding: str | None = None) -> Iterator[Path]:
    """Gives an empty directory beside `target` that is renamed to it at the end, or removed when the body raises.

    Beside it, because a rename works within one file system only. Its name is fixed, so what a killed run left is
    found and replaced; a lock keeps a second run out. An existing target is replaced at the end if it holds the file
    `replace_holding`, by which it is known to be of the same kind.
    Raises InvalidArgument when the target exists otherwise or is being made.
    """
    if target.exists():
        if replace_holding is None:
            raise InvalidArgument(f"{target} exists already; remove it or choose another directory")
        if not (target / replace_holding).is_file():
            raise InvalidArgument(f"{target} exists and has no {replace_holding}; choose another directory")
    partial = target.parent / f".{target.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidArgument(f"{target} is being made by another process") from error
        _empty(partial)
        try:
            yield partial
            _put_in_place(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _put_in_place(partial: Path, target: Path) -> None:
    old = target.parent / f".{target.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
