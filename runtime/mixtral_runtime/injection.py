"""Engines and libraries that are brought in by name instead of being installed: `package.module:attribute`.

Triton's Python stub runs an isolated interpreter that ignores PYTHONPATH, so the folders of such modules are named by
MIXTRAL_PLUGIN_PATH, in the form of PATH.
"""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from mixtral_runtime.errors import CheckpointError

PLUGIN_PATH = "MIXTRAL_PLUGIN_PATH"


def import_injected(path: str, named_by: str) -> Any:
    """The module, or the attribute of it, that `path` names. named_by: where the path was written, for the error.

    Raises CheckpointError when it cannot be imported.
    """
    for folder in reversed(os.environ.get(PLUGIN_PATH, "").split(os.pathsep)):
        if folder and folder not in sys.path:
            sys.path.insert(0, folder)
    module_name, _, attribute = path.partition(":")
    try:
        module: ModuleType = importlib.import_module(module_name)
        return getattr(module, attribute) if attribute else module
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"{named_by} {path} cannot be imported: {error}") from error
