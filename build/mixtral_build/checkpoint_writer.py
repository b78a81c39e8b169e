"""Writing a checkpoint's files of weights in a staging directory, going on where a run was killed."""

import hashlib
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from mixtral_build.staging import Notify, Staging
from mixtral_runtime.checkpoint import weights_name
from mixtral_runtime.checksums import CHECKSUMS_NAME, Checksums, tensor_sha256
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.manifest import file_sha256
from mixtral_runtime.safetensors_reader import SafetensorsFile, tensor_bytes
from mixtral_runtime.safetensors_writer import SafetensorsWriter
from mixtral_runtime.tensor_names import expected_specs

TENSORS = "tensors"  # the key in the record of a step


class CheckpointWriter:
    """One file per rank. A step of the journal is some tensors on all ranks, such as those of one weight, recorded with
    their SHA-256; what a killed run finished is compared with that before it counts.

    finished: the steps whose tensors are in the files already.
    """

    def __init__(self, staging: Staging, config: CheckpointConfig, notify: Notify | None = None) -> None:
        self._staging = staging
        self._file_names = [weights_name(rank) for rank in range(config.mapping.world_size)]
        self._specs = expected_specs(config)
        self._digests: defaultdict[tuple[str, str], Any] = defaultdict(hashlib.sha256)  # by file and tensor
        self.finished = self._intact()
        # Every rank's file has the same tensors.
        present = {name for step in self.finished for name in staging.finished[step][TENSORS][weights_name(0)]}
        if present and notify is not None:
            notify(f"resuming: {len(present)} of {len(self._specs)} tensors are done")
        # Writing and hashing take about as long as quantising, and all three let other threads run.
        self._worker = ThreadPoolExecutor(1)
        self._pending: Future[None] = self._worker.submit(lambda: None)
        self._writers: dict[str, SafetensorsWriter] = {}
        for file_name in self._file_names:
            self._writers[file_name] = SafetensorsWriter(staging.directory / file_name, self._specs, present)

    def write(self, name: str, tensor: Tensor, start: int = 0, rank: int = 0) -> None:
        """A tensor of one weight, whole or the slices from `start` on along its first dimension, in order.

        Returns while it is being written, at most one tensor behind; do not change it.
        """
        self._pending.result()
        self._pending = self._worker.submit(self._write, weights_name(rank), name, tensor, start)

    def _write(self, file_name: str, name: str, tensor: Tensor, start: int) -> None:
        self._writers[file_name].write(name, tensor, start)
        self._digests[file_name, name].update(tensor_bytes(tensor))

    def finish(self, step: str) -> None:
        """Everything that was written since the last call belongs to this step and is complete on every rank."""
        self._pending.result()
        for writer in self._writers.values():
            writer.sync()
        record: dict[str, dict[str, str]] = {file_name: {} for file_name in self._file_names}
        for (file_name, name), digest in self._digests.items():
            record[file_name][name] = digest.hexdigest()
        self._digests.clear()
        self._staging.finish(step, {TENSORS: record})

    def write_checksums(self) -> None:
        """Of everything in the directory, to `sha256.json`. All other files must be there."""
        directory = self._staging.directory
        tensors: dict[str, dict[str, str]] = {}
        for file_name in self._file_names:
            digests = {k: v for record in self._records().values() for k, v in record[file_name].items()}
            tensors[file_name] = {spec.name: digests[spec.name] for spec in self._specs}
        # A run that was killed just before the end has left its own.
        but = {CHECKSUMS_NAME, *tensors}
        others = (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name not in but)
        Checksums({str(path.relative_to(directory)): file_sha256(path) for path in others}, tensors).write(directory)

    def _records(self) -> dict[str, dict[str, dict[str, str]]]:
        """By step, file and tensor; other steps of the same journal are not ours."""
        return {step: record[TENSORS] for step, record in self._staging.finished.items() if TENSORS in (record or {})}

    def _intact(self) -> frozenset[str]:
        records = self._records()
        if not records:
            return frozenset()
        try:
            files = {name: SafetensorsFile(self._staging.directory / name) for name in self._file_names}
        except CheckpointError:  # a power failure can leave that
            return frozenset()
        return frozenset(
            step
            for step, record in records.items()
            if all(
                tensor_sha256(files[file_name].tensor(name)) == digest
                for file_name, tensors in record.items()
                for name, digest in tensors.items()
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._worker.shutdown()
        for writer in self._writers.values():
            writer.__exit__(kind, error, tb)
