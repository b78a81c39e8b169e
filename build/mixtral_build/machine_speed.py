"""How fast this machine reads, quantises, multiplies and writes, measured in a second or two on a small sample."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixtral_build.awq_search import output_error
from mixtral_runtime.checksums import tensor_sha256
from mixtral_runtime.errors import StorageError
from mixtral_runtime.formats import Format, TensorSpec
from mixtral_runtime.formats.awq import Awq
from mixtral_runtime.safetensors_reader import SafetensorsFile
from mixtral_runtime.safetensors_writer import SafetensorsWriter

ROWS, COLUMNS = 8192, 4096  # of the sample, 64 MiB in 16 bit
BATCH_ROWS = 1024  # tokens that one expert gets of a chunk of calibration samples
SEARCH_ROWS = 512  # of both sides in the scale search


@dataclass(frozen=True, slots=True)
class MachineSpeed:
    """read: of the model's files through a memory map. quantize: of 16-bit weights, the check for infinities included.
    write: SHA-256 and flushing to disk included. checksum: SHA-256 of what lies on disk. All in bytes per second.
    multiply: calibration's floating-point operations per second. search: weights per second at which the scale search
    tries one candidate, None where the precision has none."""

    read: float
    quantize: float
    write: float
    checksum: float
    multiply: float
    search: float | None


def measure_speed(weight_format: Format, dtype: torch.dtype, work_dir: Path, shard: Path | None) -> MachineSpeed:
    """dtype: of the model. work_dir: an existing directory on the disk that will be written to. shard: a file of the
    model, read where it is; without one a file in work_dir stands in for it.

    Raises StorageError when work_dir cannot be written to.
    """
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).to(dtype)
    try:
        with tempfile.TemporaryDirectory(prefix=".plan-", dir=work_dir) as scratch:
            path = Path(scratch) / "sample.safetensors"
            write = weight.nbytes / _seconds(lambda: _write(path, weight))
            _forget(path)
            source, size = _readable(shard) if shard is not None else _readable(path)
            read = size / _seconds(lambda: [tensor.clone() for tensor in source])
            checksum = weight.nbytes / _seconds(lambda: tensor_sha256(SafetensorsFile(path).tensor("sample")), 3)
    except OSError as error:
        raise StorageError(f"{work_dir} cannot be written to: {error.strerror}") from error
    _quantize(weight_format, weight[:64])  # the first call is slower
    quantize = weight.nbytes / _seconds(lambda: _quantize(weight_format, weight), 3)
    search = _search_speed(weight) if isinstance(weight_format, Awq) else None
    return MachineSpeed(read, quantize, write, checksum, _multiply_speed(weight), search)


def _seconds(work: Callable[[], object], times: int = 1) -> float:
    """The mean of `times` runs, so that what else the machine does counts as it will later. Once for what happens only
    once, such as reading what is not in the page cache."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def _write(path: Path, weight: Tensor) -> None:
    with SafetensorsWriter(path, [TensorSpec("sample", tuple(weight.shape), weight.dtype)]) as writer:
        writer.write("sample", weight)
        tensor_sha256(weight)


def _forget(path: Path) -> None:
    """Drops a file that is on disk from the page cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def _readable(path: Path) -> tuple[list[Tensor], int]:
    """Some tensors of the file that are about as large as the sample together, and their bytes."""
    file, chosen, size = SafetensorsFile(path), [], 0
    for name in sorted(file.names()):
        tensor = file.tensor(name)
        chosen.append(tensor)
        size += tensor.nbytes
        if size >= ROWS * COLUMNS * 2:
            break
    return chosen, size


def _quantize(weight_format: Format, weight: Tensor) -> None:
    torch.aminmax(weight)
    # Two halves are joined first, as queries, keys and values are, or up projection and gate.
    weight_format.quantize("sample.weight", torch.cat(weight.chunk(2)))


def _multiply_speed(weight: Tensor) -> float:
    """In the dtype that calibration uses on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = weight[: ROWS // 4].to(device)
    if device == "cpu" and weight.dtype == torch.float16:
        weight = weight.float()
    x = torch.ones(BATCH_ROWS, COLUMNS, dtype=weight.dtype, device=device)

    def multiply() -> None:
        (x @ weight.T)[0, 0].item()  # waits for a GPU

    multiply()
    return 2 * x.numel() * len(weight) / _seconds(multiply, 3)


def _search_speed(weight: Tensor) -> float:
    weight = weight[:SEARCH_ROWS]
    inputs, scale = weight[:SEARCH_ROWS], torch.ones(COLUMNS, dtype=weight.dtype)
    output_error(weight[:64], scale, inputs)
    return weight.numel() / _seconds(lambda: output_error(weight, scale, inputs), 2)
