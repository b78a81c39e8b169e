"""Int8 checkpoints from layout to layout: nothing is lost on the way, to the last byte."""

from pathlib import Path

import pytest

from mixtral_build.convert import convert_checkpoint
from mixtral_build.quantize import quantize_model
from mixtral_build.verify import verify_directory
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.errors import InvalidArgument

LAYOUTS = ("plain", "sm80", "sm90")


@pytest.fixture(scope="module")
def quantized(saved_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each layout, as `quantize` makes it at once."""
    root = tmp_path_factory.mktemp("layouts")
    for layout in LAYOUTS:
        quantize_model(saved_model, root / layout, "int8", layout=layout)
    return {layout: root / layout for layout in LAYOUTS}


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", LAYOUTS)
def test_a_converted_checkpoint_is_the_one_quantised_into_that_layout(
    quantized: dict[str, Path], tmp_path: Path, source: str, layout: str
) -> None:
    if source == layout:
        with pytest.raises(InvalidArgument, match=f"is in the layout {layout} already"):
            convert_checkpoint(quantized[source], tmp_path / "out", layout)
        return
    summary = convert_checkpoint(quantized[source], tmp_path / "out", layout)
    assert contents(tmp_path / "out") == contents(quantized[layout])
    assert (summary.source_layout, summary.layout) == (source, layout)
    assert verify_directory(tmp_path / "out").tensors == len(Checkpoint.open(quantized[layout]).names())


@pytest.mark.parametrize("layout", ["sm80", "sm90"])
def test_there_and_back_gives_the_same_bytes_for_every_rank(saved_model: Path, tmp_path: Path, layout: str) -> None:
    quantize_model(saved_model, tmp_path / "plain", "int8", tp_size=2)
    convert_checkpoint(tmp_path / "plain", tmp_path / "kernel", layout)
    convert_checkpoint(tmp_path / "kernel", tmp_path / "back", "plain")
    assert contents(tmp_path / "back") == contents(tmp_path / "plain")
    assert (tmp_path / "kernel" / "rank1.safetensors").exists()
    assert contents(tmp_path / "kernel") != contents(tmp_path / "plain")


def test_progress_ends_at_the_bytes_that_were_written(quantized: dict[str, Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = convert_checkpoint(
        quantized["plain"], tmp_path / "out", "sm80", progress=lambda done, total: seen.append((done, total))
    )
    assert seen == sorted(seen)
    assert seen[-1] == (summary.bytes, summary.bytes)


def test_only_int8_has_layouts(saved_model: Path, tmp_path: Path) -> None:
    quantize_model(saved_model, tmp_path / "dense", "16bit")
    with pytest.raises(InvalidArgument, match="is 16bit, only int8 has layouts"):
        convert_checkpoint(tmp_path / "dense", tmp_path / "out", "sm80")
    assert not (tmp_path / "out").exists()


def test_an_existing_target_is_refused(quantized: dict[str, Path]) -> None:
    with pytest.raises(InvalidArgument, match="exists already"):
        convert_checkpoint(quantized["plain"], quantized["sm80"], "sm80")
