"""From a checkpoint to an engine directory for the PyTorch runtime: the checkpoint's files, linked, and a manifest."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import torch

from mixtral_build.staging import staged_directory
from mixtral_runtime.checkpoint import CONFIG_NAME, TOKENIZER_NAME, WEIGHTS_NAME, Checkpoint
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.formats import get_format
from mixtral_runtime.formats.int8 import Int8
from mixtral_runtime.manifest import MANIFEST_NAME, Manifest, ModelInfo, Returns, describe_files
from mixtral_runtime.safetensors_writer import SafetensorsWriter
from mixtral_runtime.tensor_names import checkpoint_format, expected_specs

RUNTIMES = ("auto", "pytorch", "tensorrt-llm")
GPU_ARCHITECTURES = {"cpu": "cpu", "a100": "sm80", "h100": "sm90", "h200": "sm90"}
DEFAULT_BATCH_SIZE = 16
DEFAULT_SEQ_LEN = 4096
# Tokens of one step: long enough to keep the processor busy, short enough that running streams do not stutter while
# another prompt is read.
DEFAULT_NUM_TOKENS = {"cpu": 512}
DEFAULT_NUM_TOKENS_GPU = 2048
DEFAULT_QUEUE_SIZE = 256


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision made for the user, and why."""

    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class LimitOverrides:
    """What the user gave; None takes the default."""

    max_batch_size: int | None = None
    max_input_len: int | None = None
    max_seq_len: int | None = None
    max_num_tokens: int | None = None
    max_queue_size: int | None = None


def choose_runtime(runtime: str) -> Choice:
    """Raises InvalidArgument for a runtime that cannot be built."""
    if runtime == "tensorrt-llm":
        raise InvalidArgument("this version does not build TensorRT-LLM engines yet; use --runtime pytorch")
    if runtime == "auto":
        return Choice("pytorch", "the only runtime that this version builds")
    return Choice(runtime, "asked for")


def choose_gpu(gpu: str) -> Choice:
    """The architecture that the manifest names: "cpu", "sm80", "sm90", ..."""
    if gpu != "auto":
        return Choice(GPU_ARCHITECTURES[gpu], "asked for")
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return Choice(f"sm{major}{minor}", torch.cuda.get_device_name())
    return Choice("cpu", "no GPU here")


def plan_limits(config: CheckpointConfig, gpu: str, given: LimitOverrides) -> EngineLimits:
    """Raises InvalidArgument when the given limits contradict the model or each other."""
    longest = config.max_position_embeddings
    max_batch_size = given.max_batch_size or DEFAULT_BATCH_SIZE
    max_seq_len = given.max_seq_len or min(longest, DEFAULT_SEQ_LEN)
    if max_seq_len > longest:
        raise InvalidArgument(f"max_seq_len is {max_seq_len}, the model's limit is {longest}")
    max_input_len = given.max_input_len or max_seq_len - 1  # at least one token can be generated
    if max_input_len >= max_seq_len:
        raise InvalidArgument(f"max_input_len is {max_input_len}, it must be below max_seq_len, which is {max_seq_len}")
    default_tokens = max(DEFAULT_NUM_TOKENS.get(gpu, DEFAULT_NUM_TOKENS_GPU), max_batch_size)
    max_num_tokens = given.max_num_tokens or default_tokens
    if max_num_tokens < max_batch_size:
        raise InvalidArgument(
            f"max_num_tokens is {max_num_tokens}, it must be at least max_batch_size, which is {max_batch_size}"
        )
    queue_size = DEFAULT_QUEUE_SIZE if given.max_queue_size is None else given.max_queue_size
    return EngineLimits(max_batch_size, max_input_len, max_seq_len, max_num_tokens, queue_size)


def build_pytorch_engine(
    checkpoint_dir: Path,
    engine_dir: Path,
    *,
    gpu: str,
    limits: LimitOverrides,
    kv_cache_tokens: int | None = None,
    replace_existing: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Manifest:
    """Writes an engine directory that appears only when it is complete, and returns its manifest.

    gpu: the architecture, as from `choose_gpu`. replace_existing: an engine that is there gives way to the new one.
    progress: told the bytes that were checksummed.
    Weights in a kernel layout of TensorRT-LLM are converted to the plain one; otherwise files are hard-linked.
    Raises MixtralError for a checkpoint that is not complete, a target that exists, or impossible limits.
    """
    checkpoint = Checkpoint.open(checkpoint_dir)
    checkpoint.validate()
    planned = plan_limits(checkpoint.config, gpu, limits)
    if kv_cache_tokens is not None and kv_cache_tokens < planned.max_seq_len:
        raise InvalidArgument(
            f"kv_cache_tokens is {kv_cache_tokens}, it must be at least max_seq_len, which is {planned.max_seq_len}"
        )
    tokenizer_dir = checkpoint.directory / TOKENIZER_NAME
    if not tokenizer_dir.is_dir():
        raise CheckpointError(f"{tokenizer_dir} does not exist")
    with staged_directory(engine_dir, replace_holding=MANIFEST_NAME if replace_existing else None) as partial:
        _put_weights(checkpoint, partial)
        (partial / TOKENIZER_NAME).mkdir()
        for path in sorted(tokenizer_dir.iterdir()):
            _link_or_copy(path, partial / TOKENIZER_NAME / path.name)
        names = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
        manifest = Manifest(
            runtime="pytorch",
            versions={"mixtral-triton": project_version(), "torch": str(torch.__version__)},
            gpu=gpu,
            precision=checkpoint_format(checkpoint.config).name,
            dtype=checkpoint.config.dtype,
            kv_cache_dtype=checkpoint.config.dtype,
            limits=planned,
            model=ModelInfo.of(checkpoint.config),
            returns=Returns(log_probs=True, prompt_log_probs=True, context_logits=False, generation_logits=False),
            source=checkpoint.config.source,
            files=describe_files(partial, names, progress),
            kv_cache_tokens=kv_cache_tokens,
        )
        manifest.write(partial)
    return manifest


def project_version() -> str:
    try:
        return metadata.version("mixtral-triton")
    except metadata.PackageNotFoundError:  # run from the source tree
        return "source"


def _put_weights(checkpoint: Checkpoint, directory: Path) -> None:
    config = checkpoint.config
    if config.layout in (None, "plain"):
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            _link_or_copy(checkpoint.directory / name, directory / name)
        return
    plain = replace(config, layout="plain")
    _convert_weights(checkpoint, plain, directory / WEIGHTS_NAME)
    (directory / CONFIG_NAME).write_text(json.dumps(plain.to_json(), indent=2) + "\n", encoding="utf-8")


def _convert_weights(checkpoint: Checkpoint, config: CheckpointConfig, path: Path) -> None:
    """The checkpoint's weights in the layout of `config`, one expert at a time."""
    target = get_format("int8", config.layout)
    assert isinstance(target, Int8), target
    assert checkpoint.config.layout is not None
    specs = expected_specs(config)
    with SafetensorsWriter(path, specs) as writer:
        for spec in specs:
            tensor = checkpoint.tensor(spec.name)
            if spec.dtype != torch.int8:
                writer.write(spec.name, tensor)
            elif tensor.ndim == 2:
                writer.write(spec.name, target.convert(tensor, checkpoint.config.layout))
            else:
                for expert in range(tensor.shape[0]):
                    one = target.convert(tensor[expert : expert + 1], checkpoint.config.layout)
                    writer.write(spec.name, one, expert)


def _link_or_copy(source: Path, target: Path) -> None:
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
