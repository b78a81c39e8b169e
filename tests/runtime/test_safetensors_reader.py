"""Reading through a memory map: nothing is copied, and a file may be larger than memory and swap."""

import json
from pathlib import Path

import psutil
import torch

from mixtral_runtime.safetensors_reader import SafetensorsFile


def test_a_file_larger_than_memory_is_read_where_it_is_touched(tmp_path: Path) -> None:
    size = 2 * (psutil.virtual_memory().total + psutil.swap_memory().total)
    header = json.dumps({"w": {"dtype": "I8", "shape": [2, size // 2], "data_offsets": [0, size // 2 * 2]}}).encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(8 + len(header) + size // 2 * 2 - 1)
        file.write(b"\x07")  # all before it is a hole that takes no disk
    weights = SafetensorsFile(path).tensor("w")
    assert weights.shape == (2, size // 2)
    assert (weights[0, 0].item(), weights[1, -1].item()) == (0, 7)


def test_writing_to_a_tensor_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "small.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + torch.tensor([1.0, 2.0]).numpy().tobytes())
    SafetensorsFile(path).tensor("w").fill_(9.0)
    assert SafetensorsFile(path).tensor("w").tolist() == [1.0, 2.0]
