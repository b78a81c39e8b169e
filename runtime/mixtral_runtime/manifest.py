"""An engine directory's `manifest.json`: what the engine is, checked before anything is loaded."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import CheckpointError

if TYPE_CHECKING:  # it needs PyTorch, which a reader of a manifest does not
    from mixtral_runtime.config import CheckpointConfig

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
RUNTIMES = ("pytorch", "tensorrt-llm")
CHUNK_BYTES = 4 << 20

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The dimensions that a client or an operator asks for."""

    architecture: str
    num_hidden_layers: int
    hidden_size: int
    vocab_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    num_experts: int
    top_k: int
    max_position_embeddings: int

    @classmethod
    def of(cls, config: "CheckpointConfig") -> Self:
        return cls(
            architecture=config.architecture,
            num_hidden_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_size=config.head_size,
            num_experts=config.moe.num_experts,
            top_k=config.moe.top_k,
            max_position_embeddings=config.max_position_embeddings,
        )


@dataclass(frozen=True, slots=True)
class Returns:
    """What the engine can return beside tokens."""

    log_probs: bool
    prompt_log_probs: bool
    context_logits: bool
    generation_logits: bool


@dataclass(frozen=True, slots=True)
class FileInfo:
    """size in bytes; sha256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """runtime: "pytorch", "tensorrt-llm" or "package.module:factory" of an injected engine. versions: by package.
    gpu: "cpu" or the architecture, such as "sm80". kv_cache_tokens: None plans the KV cache at load. files: by name
    relative to the engine directory, the manifest itself left out. quality: measured figures, None before."""

    runtime: str
    versions: dict[str, str]
    gpu: str
    precision: str
    dtype: str
    kv_cache_dtype: str
    limits: EngineLimits
    model: ModelInfo
    returns: Returns
    source: str | None
    files: dict[str, FileInfo]
    kv_cache_tokens: int | None = None
    quality: dict[str, Any] | None = None
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def world_size(self) -> int:
        """How many GPUs share the engine: each has a file `rankN` of its own."""
        ranks = {found[1] for name in self.files if (found := re.fullmatch(r"(rank\d+)\.(?:engine|safetensors)", name))}
        return max(1, len(ranks))

    @classmethod
    def load(cls, engine_dir: Path | str) -> Self:
        """Raises CheckpointError when it is missing, not JSON, of another format version, or has unknown keys."""
        path = Path(engine_dir) / MANIFEST_NAME
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; `mixtral-build engine` makes an engine directory")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON ({error})") from error
        try:
            return cls._from_json(data)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error

    @classmethod
    def _from_json(cls, data: object) -> Self:
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"format_version is {version}, this program reads {FORMAT_VERSION}; "
                f"build the engine again with `mixtral-build engine`"
            )
        values = _check_keys(cls, data, "the manifest")
        parts: dict[str, type[Any]] = {"limits": EngineLimits, "model": ModelInfo, "returns": Returns}
        for key, part in parts.items():
            values[key] = _read(part, values[key], key)
        for name, limit in asdict(values["limits"]).items():
            least = 0 if name == "max_queue_size" else 1
            if type(limit) is not int or limit < least:
                raise CheckpointError(f"limits.{name} is {limit!r}, it must be a whole number of at least {least}")
        if not isinstance(values["files"], dict):
            raise CheckpointError("files is not an object")
        if values["runtime"] not in RUNTIMES and ":" not in str(values["runtime"]):
            raise CheckpointError(f"runtime is {values['runtime']}, this program knows {', '.join(RUNTIMES)}")
        values["files"] = {name: _read(FileInfo, info, f"files.{name}") for name, info in values["files"].items()}
        return cls(**values)

    def write(self, engine_dir: Path | str) -> None:
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (Path(engine_dir) / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    def check_files(
        self, engine_dir: Path | str, *, sha256: bool = False, progress: Callable[[int], object] | None = None
    ) -> None:
        """Compares sizes, and contents where `sha256` is asked. `progress` is told the bytes read.

        Raises CheckpointError for the first file that is missing or differs.
        """
        for name, info in self.files.items():
            path = Path(engine_dir) / name
            if not path.is_file():
                raise CheckpointError(f"{path} does not exist, the manifest lists it; build the engine again")
            size = path.stat().st_size
            if size != info.size:
                raise CheckpointError(f"{path} has {size} bytes, the manifest says {info.size}; build the engine again")
            if sha256 and (found := file_sha256(path, progress)) != info.sha256:
                raise CheckpointError(
                    f"{path} has SHA-256 {found}, the manifest says {info.sha256}; build the engine again"
                )


def describe_files(
    engine_dir: Path, names: Iterable[str], progress: Callable[[int], object] | None = None
) -> dict[str, FileInfo]:
    """Size and SHA-256 of each file, by its name relative to the engine directory."""
    return {
        name: FileInfo((engine_dir / name).stat().st_size, file_sha256(engine_dir / name, progress)) for name in names
    }


def file_sha256(path: Path, progress: Callable[[int], object] | None = None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()


def _read(part: type[Part], data: object, where: str) -> Part:
    return part(**_check_keys(part, data, where))


def _check_keys(part: type[Any], data: object, where: str) -> dict[str, Any]:
    """Exactly the class's fields: an unknown key may change the meaning of the others, so none is skipped."""
    if not isinstance(data, dict):
        raise CheckpointError(f"{where} is not an object")
    names = {f.name for f in fields(part)}
    unknown, missing = sorted(data.keys() - names), sorted(names - data.keys())
    if unknown:
        raise CheckpointError(f"{where} has the unknown key {unknown[0]}")
    if missing:
        raise CheckpointError(f"{where} has no key {missing[0]}")
    return dict(data)
