"""Measured quality in an engine's manifest."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixtral_build.model_directory import ModelDirectory
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.manifest import MANIFEST_NAME, Manifest


def check_storable(model: ModelDirectory) -> None:
    """Before hours of measuring. Raises InvalidArgument for what has no manifest."""
    if model.kind != "engine":
        raise InvalidArgument(f"{model.directory} is a {model.kind}, only an engine has a manifest to store figures in")


def store_quality(engine_dir: Path, figures: dict[str, Any]) -> None:
    """Adds to the manifest's `quality`; of a figure that is there already the new one counts."""
    manifest = Manifest.load(engine_dir)
    updated = replace(manifest, quality={**(manifest.quality or {}), **figures})
    # Renamed into place, so that no reader meets half a manifest.
    with tempfile.TemporaryDirectory(dir=engine_dir, prefix=".quality-") as folder:
        updated.write(folder)
        os.replace(Path(folder) / MANIFEST_NAME, engine_dir / MANIFEST_NAME)
