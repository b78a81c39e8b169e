"""From a checkpoint to an engine directory for TensorRT-LLM: `trtllm-build` is run, watched and checked."""

import json
import shlex
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixtral_build.convert import convert_checkpoint
from mixtral_build.engine import check_kv_cache_tokens, file_names, open_checkpoint, put_tokenizer
from mixtral_build.limits import LimitOverrides, plan_limits
from mixtral_build.staging import Notify, staged_directory
from mixtral_build.trtllm_command import PROGRAM, check_combination, kernel_layout, trtllm_build_command
from mixtral_build.version import project_version
from mixtral_runtime.checkpoint import CONFIG_NAME, Checkpoint
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.devices import Device
from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import Internal, InvalidArgument
from mixtral_runtime.manifest import MANIFEST_NAME, Manifest, ModelInfo, Returns, describe_files
from mixtral_runtime.tensor_names import checkpoint_format

LOG_NAME = "build.log"
CHECKED_LIMITS = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")


@dataclass(frozen=True, slots=True)
class TrtllmBuild:
    """What is to be built; nothing has been done yet."""

    checkpoint: Checkpoint
    device: Device
    limits: EngineLimits
    timing_cache: Path | None = None

    @property
    def layout(self) -> str | None:
        """That the weights must be converted to before, None when they are as they must be."""
        config, needed = self.checkpoint.config, kernel_layout(self.device)
        return None if config.layout in (None, needed) else needed

    def command(self, checkpoint_dir: Path, engine_dir: Path) -> list[str]:
        return trtllm_build_command(
            self._converted(),
            self.device,
            self.limits,
            checkpoint_dir=checkpoint_dir,
            engine_dir=engine_dir,
            timing_cache=self.timing_cache,
        )

    def commands(self, engine_dir: Path) -> list[list[str]]:
        """What a user could type instead."""
        source = self.checkpoint.directory
        if self.layout is None:
            return [self.command(source, engine_dir)]
        converted = source.with_name(f"{source.name}-{self.layout}")
        convert = ["mixtral-build", "convert", str(source), str(converted), "--layout", self.layout]
        return [convert, self.command(converted, engine_dir)]

    def _converted(self) -> CheckpointConfig:
        config = self.checkpoint.config
        return config if self.layout is None else replace(config, layout=self.layout)


def plan_trtllm_build(
    checkpoint_dir: Path,
    *,
    device: Device,
    limits: LimitOverrides,
    preset: str = "latency",
    timing_cache: Path | None = None,
) -> TrtllmBuild:
    """Raises MixtralError for a checkpoint that is not complete, a combination that is refused, limits that do not fit,
    or a timing cache that is not there."""
    checkpoint = open_checkpoint(checkpoint_dir)
    check_combination(checkpoint.config, device)
    if timing_cache is not None and not timing_cache.is_file():
        raise InvalidArgument(f"{timing_cache} is not a file, --timing-cache names that of an earlier engine")
    planned = plan_limits(checkpoint.config, device, limits, preset)
    return TrtllmBuild(checkpoint, device, planned, timing_cache and timing_cache.absolute())


def build_trtllm_engine(
    build: TrtllmBuild,
    engine_dir: Path,
    *,
    kv_cache_tokens: int | None = None,
    replace_existing: bool = False,
    notify: Notify | None = None,
) -> Manifest:
    """Writes an engine directory that appears only when it is complete, and returns its manifest.

    `trtllm-build` writes to the directory's `build.log`; of a build that failed it is kept beside the directory.
    replace_existing: an engine that is there gives way to the new one. notify: told in a sentence what is going on.
    Raises InvalidArgument when the program is not installed, Internal when
    it fails or leaves something out.
    """
    check_kv_cache_tokens(kv_cache_tokens, build.limits)
    if shutil.which(PROGRAM) is None:
        raise InvalidArgument(
            f"{PROGRAM} is not installed, it comes with tensorrt-llm 1.2.1; --dry-run prints the command, "
            f"--runtime pytorch builds without it"
        )
    config = build.checkpoint.config
    with staged_directory(engine_dir, replace_holding=MANIFEST_NAME if replace_existing else None) as partial:
        source, converted = build.checkpoint.directory, partial / "converted"
        if build.layout is not None:
            convert_checkpoint(source, converted, build.layout, notify=notify)
            source = converted
        _run(build.command(source, partial), partial / LOG_NAME, engine_dir.with_name(f"{engine_dir.name}.{LOG_NAME}"))
        shutil.rmtree(converted, ignore_errors=True)
        built = _check_output(partial, config.mapping.world_size, build.limits)
        put_tokenizer(build.checkpoint, partial)
        manifest = Manifest(
            runtime="tensorrt-llm",
            versions={"mixtral-triton": project_version(), "tensorrt-llm": str(built.get("version", "unknown"))},
            gpu=build.device.architecture,
            precision=checkpoint_format(config).name,
            dtype=config.dtype,
            kv_cache_dtype=config.kv_cache_dtype,
            limits=build.limits,
            model=ModelInfo.of(config),
            # Log probabilities of the prompt need --gather_context_logits, which costs too much memory to be a default.
            returns=Returns(log_probs=True, prompt_log_probs=False, context_logits=False, generation_logits=False),
            source=config.source,
            files=describe_files(partial, file_names(partial)),
            kv_cache_tokens=kv_cache_tokens,
        )
        manifest.write(partial)
    return manifest


def _run(command: list[str], log: Path, kept_log: Path) -> None:
    with log.open("w", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if status != 0:
        shutil.copy(log, kept_log)
        last = log.read_text(encoding="utf-8", errors="replace").rstrip().rsplit("\n", 1)[-1]
        raise Internal(f"{PROGRAM} ended with exit status {status}, its log is {kept_log} and ends: {last}")


def _check_output(directory: Path, ranks: int, limits: EngineLimits) -> dict[str, Any]:
    """The engine's config, after comparing what was built with what was asked for."""
    for name in (CONFIG_NAME, *(f"rank{rank}.engine" for rank in range(ranks))):
        path = directory / name
        if not path.is_file() or path.stat().st_size == 0:
            raise Internal(f"{PROGRAM} ended without an error but did not write {name}")
    try:
        config = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
        built = config["build_config"]
    except (ValueError, KeyError, TypeError) as error:
        raise Internal(f"{PROGRAM} wrote a {CONFIG_NAME} that is not an engine's") from error
    for name in CHECKED_LIMITS:
        if built.get(name) != getattr(limits, name):
            raise Internal(f"{PROGRAM} built {name} {built.get(name)}, {getattr(limits, name)} was asked for")
    return dict(config)
