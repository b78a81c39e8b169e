"""From an engine directory to a running engine, whichever runtime its manifest names."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mixtral_runtime.devices import Device, fp8_conversion
from mixtral_runtime.engine import Engine
from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.injection import import_injected
from mixtral_runtime.manifest import Manifest
from mixtral_runtime.process_memory import process_memory
from mixtral_runtime.pytorch.engine import PyTorchEngine
from mixtral_runtime.pytorch.settings import PyTorchSettings
from mixtral_runtime.tensorrt_llm.engine import TensorRtLlmEngine
from mixtral_runtime.tensorrt_llm.settings import TensorRtLlmSettings

ACTIVATION_DTYPES = {None: None, "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
REBUILD = "build the engine for this machine with `mixtral-build engine CHECKPOINT_DIR ENGINE_DIR`"

logger = logging.getLogger(__name__)


def open_engine(
    engine_dir: Path | str,
    *,
    device: str = "auto",
    activation_dtype: str | None = None,
    pytorch: PyTorchSettings | None = None,
    tensorrt_llm: TensorRtLlmSettings | None = None,
) -> Engine:
    """Checks the manifest and the files' sizes, loads, and logs what that took.

    device: `auto`, `cpu`, `cuda` or `cuda:N`; auto is the GPU where there is one and the engine was not built for the
    CPU. activation_dtype: float16, bfloat16 or float32, for the PyTorch runtime; None is the checkpoint's.
    pytorch, tensorrt_llm: of these runtimes, None is the defaults. TensorRT-LLM runs on a GPU and with the activations
    it was built for.
    A runtime written as `package.module:factory` is imported and called as `factory(engine_dir, manifest)`.
    Raises InvalidArgument for an argument that cannot be, CheckpointError when the directory is not a sound engine for
    this machine.
    """
    begun = time.perf_counter()
    engine = _open(Path(engine_dir), device, activation_dtype, pytorch, tensorrt_llm)
    logger.info("the engine was loaded in %.2f s; memory: %s", time.perf_counter() - begun, process_memory())
    return engine


def _open(
    engine_dir: Path,
    device: str,
    activation_dtype: str | None,
    pytorch: PyTorchSettings | None,
    tensorrt_llm: TensorRtLlmSettings | None,
) -> Engine:
    manifest = Manifest.load(engine_dir)
    manifest.check_files(engine_dir)
    if ":" in manifest.runtime:
        factory: Callable[[Path, Manifest], Engine] = import_injected(manifest.runtime, "the manifest's runtime")
        return factory(engine_dir, manifest)
    if manifest.runtime == "tensorrt-llm":
        if device == "cpu" or activation_dtype is not None:
            raise InvalidArgument(
                f"device is {device} and activation_dtype {activation_dtype}, a TensorRT-LLM engine runs on a GPU and "
                f"with the activations it was built for; leave both out"
            )
        return TensorRtLlmEngine.open(engine_dir, manifest, tensorrt_llm or TensorRtLlmSettings())
    if activation_dtype not in ACTIVATION_DTYPES:
        known = ", ".join(str(name) for name in ACTIVATION_DTYPES if name)
        raise InvalidArgument(f"activation_dtype is {activation_dtype}, it must be one of {known}")
    dtype = ACTIVATION_DTYPES[activation_dtype]
    where = _device(device, manifest.gpu)
    if "fp8" in (manifest.precision, manifest.kv_cache_dtype) and (remark := fp8_conversion(_described(where))):
        logger.warning("%s", remark)
    return PyTorchEngine.open(engine_dir, manifest, where, dtype, pytorch)


def _device(device: str, built_for: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and built_for != "cpu" else "cpu"
    found = "cpu"
    if device != "cpu":
        if not torch.cuda.is_available():
            raise CheckpointError(f"the device is {device}, this machine has no CUDA GPU; {REBUILD}")
        found = _architecture(torch.device(device))
    if built_for not in ("cpu", found):
        raise CheckpointError(f"the engine was built for {built_for}, the device is {found}; {REBUILD}")
    return torch.device(device)


def _described(device: torch.device) -> Device:
    if device.type == "cpu":
        return Device("cpu", "cpu", memory=0)
    return Device(torch.cuda.get_device_name(device), _architecture(device), memory=0)


def _architecture(device: torch.device) -> str:
    return "sm{}{}".format(*torch.cuda.get_device_capability(device))
