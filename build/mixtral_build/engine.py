"""From a checkpoint to an engine directory for the PyTorch runtime: the checkpoint's files, linked, and a manifest."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from mixtral_build.checkpoint_writer import CheckpointWriter
from mixtral_build.convert import checkpoint_identity, convert_weights
from mixtral_build.limits import LimitOverrides, plan_limits
from mixtral_build.runtime_choice import Choice
from mixtral_build.staging import Notify, Staging, fsync_path, staged
from mixtral_build.version import project_version
from mixtral_runtime.checkpoint import CONFIG_NAME, TOKENIZER_NAME, WEIGHTS_NAME, Checkpoint
from mixtral_runtime.devices import Device
from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.kernels import cpu_path
from mixtral_runtime.manifest import MANIFEST_NAME, FileInfo, Manifest, ModelInfo, Returns, describe_files
from mixtral_runtime.tensor_names import checkpoint_format


def build_pytorch_engine(
    checkpoint_dir: Path,
    engine_dir: Path,
    *,
    device: Device,
    limits: LimitOverrides,
    preset: str = "latency",
    kv_cache_tokens: int | None = None,
    replace_existing: bool = False,
    notify: Notify | None = None,
    progress: Callable[[int], object] | None = None,
) -> Manifest:
    """Writes an engine directory that appears only when it is complete, and returns its manifest.

    device: what it will run on. limits, preset: as in `plan_limits`. replace_existing: an engine that is there
    gives way to the new one. notify: told in a sentence when the work of a killed run is continued. progress: told the
    bytes that were checksummed.
    Weights in a kernel layout of TensorRT-LLM are converted to the plain one; otherwise files are hard-linked.
    Raises MixtralError for a checkpoint that is not complete or does not fit the device, a target that exists, or
    impossible limits.
    """
    checkpoint = open_checkpoint(checkpoint_dir)
    if (ranks := checkpoint.config.mapping.world_size) > 1:
        raise InvalidArgument(f"{checkpoint_dir} is split for {ranks} GPUs, the PyTorch runtime uses one")
    planned = plan_limits(checkpoint.config, device, limits, preset)
    check_kv_cache_tokens(kv_cache_tokens, planned)
    manifest = Manifest(
        runtime="pytorch",
        versions={"mixtral-triton": project_version(), "torch": str(torch.__version__)},
        gpu=device.architecture,
        precision=checkpoint_format(checkpoint.config).name,
        dtype=checkpoint.config.dtype,
        kv_cache_dtype=checkpoint.config.kv_cache_dtype,
        limits=planned,
        model=ModelInfo.of(checkpoint.config),
        returns=Returns(log_probs=True, prompt_log_probs=True, context_logits=False, generation_logits=False),
        source=checkpoint.config.source,
        files={},
        kv_cache_tokens=kv_cache_tokens,
    )
    key = {"manifest": asdict(manifest), "checkpoint": checkpoint_identity(checkpoint_dir)}
    with staged(engine_dir, key, notify, replace_holding=MANIFEST_NAME if replace_existing else None) as staging:
        _put_weights(checkpoint, staging, notify)
        put_tokenizer(checkpoint, staging.directory)
        manifest = replace(manifest, files=_checksums(staging, progress))
        manifest.write(staging.directory)
    if device.architecture == "cpu":
        cpu_path()  # compiles the kernels, so that the engine's first start does not
    return manifest


def open_checkpoint(checkpoint_dir: Path) -> Checkpoint:
    """A checkpoint that has all that an engine needs. Raises CheckpointError for the first thing that is missing."""
    checkpoint = Checkpoint.open(checkpoint_dir)
    checkpoint.validate()
    if not (tokenizer_dir := checkpoint_dir / TOKENIZER_NAME).is_dir():
        raise CheckpointError(f"{tokenizer_dir} does not exist")
    return checkpoint


def check_kv_cache_tokens(kv_cache_tokens: int | None, limits: EngineLimits) -> None:
    if kv_cache_tokens is not None and kv_cache_tokens < limits.max_seq_len:
        raise InvalidArgument(
            f"kv_cache_tokens is {kv_cache_tokens}, it must be at least max_seq_len, which is {limits.max_seq_len}"
        )


def put_tokenizer(checkpoint: Checkpoint, directory: Path) -> None:
    (directory / TOKENIZER_NAME).mkdir(exist_ok=True)
    for path in sorted((checkpoint.directory / TOKENIZER_NAME).iterdir()):
        _link_or_copy(path, directory / TOKENIZER_NAME / path.name)


def file_names(directory: Path) -> list[str]:
    """Of all files in it, relative to it, but for the manifest, which a killed run may have left."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return sorted(str(path.relative_to(directory)) for path in files)


def _put_weights(checkpoint: Checkpoint, staging: Staging, notify: Notify | None) -> None:
    directory, config = staging.directory, checkpoint.config
    if config.layout in (None, "plain"):
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            _link_or_copy(checkpoint.directory / name, directory / name)
        return
    plain = replace(config, layout="plain")
    with CheckpointWriter(staging, plain, notify) as writer:
        convert_weights(checkpoint, plain, writer)
    (directory / CONFIG_NAME).write_text(json.dumps(plain.to_json(), indent=2) + "\n", encoding="utf-8")


def _checksums(staging: Staging, progress: Callable[[int], object] | None) -> dict[str, FileInfo]:
    """Of each file. A file of weights takes minutes, so each is a step that a resumed run need not repeat."""
    found = {}
    for name in file_names(staging.directory):
        if (step := f"SHA-256 of {name}") not in staging.finished:
            fsync_path(staging.directory / name)
            (info,) = describe_files(staging.directory, [name], progress).values()
            staging.finish(step, asdict(info))
        found[name] = FileInfo(**staging.finished[step])
    return found


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)  # a killed run may have left half a copy
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copy(source, target)


def engine_summary(engine_dir: Path, manifest: Manifest, runtime: Choice, gpu: Choice) -> dict[str, object]:
    """What `mixtral-build engine --json` prints."""
    return {
        "engine": str(engine_dir),
        "runtime": runtime.value,
        "gpu": gpu.value,
        "precision": manifest.precision,
        "dtype": manifest.dtype,
        "limits": asdict(manifest.limits),
        "kv_cache_tokens": manifest.kv_cache_tokens,
        "bytes": sum(info.size for info in manifest.files.values()),
    }
