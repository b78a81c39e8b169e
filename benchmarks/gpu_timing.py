"""Seconds of calls on a device, and what the device can do at most: copying, and multiplying matrices."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

WARM_UP = 2
LEAST, MOST = 3, 200  # repetitions
COPY_BYTES = 8 << 30
MATRIX = 8192


@dataclass(frozen=True, slots=True)
class Timing:
    """seconds: the median of one call. graph: whether the calls ran as one CUDA graph, without the launches' gaps."""

    seconds: float
    graph: bool


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_calls(calls: Sequence[Callable[[], object]], device: torch.device, for_s: float = 0.2) -> Timing:
    """calls: all run one after another, each on data of its own, so that no cache keeps them; the result is for one.
    for_s: how long they are repeated, about. They run as one CUDA graph where they can be recorded."""

    def run() -> None:
        for call in calls:
            call()

    for _ in range(WARM_UP):
        run()
    synchronize(device)
    replay, graph = run, False
    if device.type == "cuda":
        recorded = _record(run)
        if recorded is not None:
            replay, graph = recorded, True
    clock = _event_seconds if device.type == "cuda" else _host_seconds
    first = max(clock(replay), 1e-7)
    repetitions = min(MOST, max(LEAST, int(for_s / first)))
    return Timing(statistics.median(clock(replay) for _ in range(repetitions)) / len(calls), graph)


def _record(run: Callable[[], None]) -> Callable[[], None] | None:
    """The replay of a CUDA graph; None where something in it cannot be recorded."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def _event_seconds(run: Callable[[], None]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _host_seconds(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def copy_bandwidth(device: torch.device, size: int = COPY_BYTES) -> float:
    """Bytes read plus bytes written per second, of a copy of `size` bytes from one place of the memory to another."""
    source = torch.empty(size, dtype=torch.uint8, device=device).random_(0, 256)
    target = torch.empty_like(source)
    return 2 * size / time_calls([lambda: target.copy_(source)], device, 0.5).seconds


def matrix_flops(device: torch.device, dtype: torch.dtype, size: int = MATRIX) -> float:
    """Multiplications and additions per second of a product of two [size, size] matrices of random numbers, by the
    library behind PyTorch. dtype: bfloat16 or float8_e4m3fn (with one scale for each matrix). Raises RuntimeError where
    the device has no such arithmetic."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    if dtype is torch.bfloat16:
        return 2 * size**3 / time_calls([lambda: left @ right], device, 0.5).seconds
    one = torch.ones((), device=device)
    columns = right.t()  # the library takes the second matrix by columns

    def product() -> object:
        return torch._scaled_mm(left, columns, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    return 2 * size**3 / time_calls([product], device, 0.5).seconds
