"""Streaming a safetensors file: any order, any slices, and the result is what the library itself would read."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from mixtral_runtime.formats import TensorSpec
from mixtral_runtime.safetensors_reader import SafetensorsFile
from mixtral_runtime.safetensors_writer import ALIGNMENT, SafetensorsWriter

specs = st.lists(
    st.tuples(
        st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
        st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int8]),
    ),
    min_size=1,
    max_size=6,
).map(lambda parts: [TensorSpec(f"t{i}", shape, dtype) for i, (shape, dtype) in enumerate(parts)])


@settings(max_examples=40, deadline=None)
@given(specs, st.randoms(use_true_random=False))
def test_slices_in_any_order_give_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, specs: list[TensorSpec], random: object
) -> None:
    path = tmp_path_factory.mktemp("out") / "file.safetensors"
    tensors = {spec.name: torch.randint(-99, 99, spec.shape).to(spec.dtype) for spec in specs}
    pieces = [(spec.name, start) for spec in specs for start in range(spec.shape[0])]
    random.shuffle(pieces)  # type: ignore[attr-defined]
    with SafetensorsWriter(path, specs) as writer:
        for name, start in pieces:
            writer.write(name, tensors[name][start : start + 1], start)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())


def test_tensors_are_aligned_for_vector_loads(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    specs = [TensorSpec("odd", (3,), torch.int8), TensorSpec("wide", (4, 64), torch.float32)]
    with SafetensorsWriter(path, specs) as writer:
        for spec in specs:
            writer.write(spec.name, torch.zeros(spec.shape, dtype=spec.dtype))
    assert int.from_bytes(path.read_bytes()[:8], "little") % ALIGNMENT == ALIGNMENT - 8
    assert SafetensorsFile(path).tensor("wide").data_ptr() % ALIGNMENT == 0


def test_a_file_that_is_not_complete_cannot_be_closed(tmp_path: Path) -> None:
    spec = TensorSpec("a", (2, 3), torch.float32)
    with pytest.raises(AssertionError, match="a"), SafetensorsWriter(tmp_path / "file", [spec]) as writer:
        writer.write("a", torch.zeros(1, 3))
