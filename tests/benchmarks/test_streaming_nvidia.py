"""A checkout of NVIDIA's models becomes a repository that can be served; what is none is refused at once."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from streaming import main
from streaming_nvidia import FOLDERS, MODELS, TEXT_MODELS, models_of, write_repository


def make_checkout(folder: Path, place: str = FOLDERS[0]) -> Path:
    """Files where NVIDIA has them, with words of our own in them."""
    for name in MODELS:
        version = folder / place / name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(
            f'name: "{name}" max_batch_size: ${{triton_max_batch_size}} backend: "${{triton_backend}}" '
            'parameters: "${tokenizer_dir}" "${medusa_choices}"'
        )
        if name in TEXT_MODELS:
            (version / "model.py").write_text(f"# {name}")
    return folder


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments])
    assert result.exit_code == 2
    return " ".join(result.output.split())


def test_a_path_that_is_missing_is_refused(tmp_path: Path) -> None:
    assert "missing is no folder, it must be a checkout of" in refusal("--nvidia", str(tmp_path / "missing"))


def test_another_folder_is_refused(tmp_path: Path) -> None:
    said = refusal("--nvidia", str(tmp_path))
    assert all(place in said for place in FOLDERS)


def test_a_checkout_without_one_of_the_models_is_refused_by_the_file_s_name(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    (checkout / FOLDERS[0] / "postprocessing" / "1" / "model.py").unlink()
    assert "has no postprocessing/1/model.py" in refusal("--nvidia", str(checkout))


@pytest.mark.parametrize("place", FOLDERS)
def test_the_repository_has_their_models_and_our_engine_behind_their_configuration(tmp_path: Path, place: str) -> None:
    checkout = make_checkout(tmp_path / "checkout", place)
    engine_model = tmp_path / "engine.py"
    engine_model.write_text("# the engine")
    repository = tmp_path / "repository"
    write_repository(models_of(checkout), engine_model, tmp_path / "tokenizer", repository)
    for name in MODELS:
        config = (repository / name / "config.pbtxt").read_text()
        assert f'name: "{name}" max_batch_size: 64 backend: "python"' in config
        assert f'"{tmp_path / "tokenizer"}" "${{medusa_choices}}"' in config  # what only the C++ model reads stays open
    assert [(repository / name / "1" / "model.py").read_text() for name in (*TEXT_MODELS, "tensorrt_llm")] == [
        "# preprocessing",
        "# postprocessing",
        "# the engine",
    ]
    assert list((repository / "ensemble" / "1").iterdir()) == []
