"""TensorRT-LLM's executor bindings, or the module that takes their place."""

import contextlib
import importlib
import os
import sys
from dataclasses import dataclass
from typing import Any

from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.injection import import_injected

INJECTED = "MIXTRAL_TRTLLM_BINDINGS"  # `package.module` or `package.module:attribute`
IMAGE = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"


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
    try:
        # Importing it prints a banner, and stdout belongs to the results of the program that imports.
        with contextlib.redirect_stdout(sys.stderr):
            package = importlib.import_module("tensorrt_llm")
            module = importlib.import_module("tensorrt_llm.bindings.executor")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "tensorrt_llm":
            raise _broken(error) from error
        raise CheckpointError(
            f"the engine was built for TensorRT-LLM, which is not installed here; serve it in the container {IMAGE}, "
            f"or build an engine with `mixtral-build engine --runtime pytorch`"
        ) from error
    except ImportError as error:
        raise _broken(error) from error
    return Bindings(module, str(package.__version__))


def _broken(error: ImportError) -> CheckpointError:
    # The image carries an `openai` that is too old for its own tensorrt_llm, whose package imports it eagerly.
    hint = "; the image's openai is too old, `pip install -U openai` mends it" if "openai" in str(error) else ""
    return CheckpointError(f"TensorRT-LLM is installed but cannot be imported: {error}{hint}")
