"""TensorRT-LLM's executor bindings, or the module that takes their place."""

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import Any

from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.injection import import_injected
from mixtral_runtime.manifest import Manifest

INJECTED = "MIXTRAL_TRTLLM_BINDINGS"  # `package.module` or `package.module:attribute`
IMAGE = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
ABSENT = (
    f"the engine was built for TensorRT-LLM, which is not installed here; serve it in the container {IMAGE}, or build "
    f"an engine with `mixtral-build engine --runtime pytorch`"
)
REBUILD = "build the engine here with `mixtral-build engine CHECKPOINT_DIR ENGINE_DIR --replace`"


@dataclass(frozen=True, slots=True)
class Bindings:
    """module: what `tensorrt_llm.bindings.executor` offers. version: TensorRT-LLM's, None for an injected module,
    which is no TensorRT-LLM."""

    module: Any
    version: str | None


def load_bindings() -> Bindings:
    """Raises CheckpointError that says how to get the library when it cannot be imported."""
    if path := os.environ.get(INJECTED):
        return Bindings(import_injected(path, INJECTED), None)
    if importlib.util.find_spec("tensorrt_llm") is None:
        raise CheckpointError(ABSENT)
    try:
        # Importing it prints a banner, and stdout belongs to the results of the program that imports.
        with contextlib.redirect_stdout(sys.stderr):
            package = importlib.import_module("tensorrt_llm")
            module = importlib.import_module("tensorrt_llm.bindings.executor")
    except ImportError as error:
        # The image carries an `openai` that is too old for its own tensorrt_llm, whose package imports it eagerly.
        hint = "; the image's openai is too old, `pip install -U openai` mends it" if "openai" in str(error) else ""
        raise CheckpointError(f"TensorRT-LLM is installed but cannot be imported: {error}{hint}") from error
    return Bindings(module, str(package.__version__))


def check_installed(manifest: Manifest) -> None:
    """As far as it can be told without the seconds that importing takes. Raises CheckpointError."""
    if os.environ.get(INJECTED):
        return
    if importlib.util.find_spec("tensorrt_llm") is None:
        raise CheckpointError(ABSENT)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # then importing it will tell
        check_version(manifest, importlib.metadata.version("tensorrt-llm"))


def check_version(manifest: Manifest, found: str) -> None:
    """An engine runs only with the version that built it. Raises CheckpointError."""
    built = manifest.versions.get("tensorrt-llm", "unknown")
    if built != found:
        raise CheckpointError(f"the engine was built with TensorRT-LLM {built}, here is {found}; {REBUILD}")
