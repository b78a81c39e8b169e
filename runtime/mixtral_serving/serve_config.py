"""Everything an operator tunes: one strict TOML file, named by MIXTRAL_SERVE_CONFIG. Unknown keys are refused."""

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_type_hints

from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.pytorch.settings import PyTorchSettings
from mixtral_runtime.settings import check_range, read_settings, refuse_unknown_keys
from mixtral_runtime.tensorrt_llm.settings import TensorRtLlmSettings
from mixtral_serving.server.exposure import AdminSettings, PlaintextSettings, TlsSettings
from mixtral_serving.server.supervision import SupervisionSettings


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """device: auto takes a GPU when there is one. activation_dtype: None is the checkpoint's. drain_s: how long
    running requests may go on when the server stops. max_queued_tokens: prompt tokens that may wait; None is the
    default of `mixtral_serving.admission`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    activation_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    drain_s: float = 5.0
    max_queued_tokens: int | None = None

    def __post_init__(self) -> None:
        check_range("drain_s", self.drain_s, at_least=0)
        check_range("max_queued_tokens", self.max_queued_tokens, at_least=1)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """One field per section of the file. A section is a frozen dataclass beside what it configures, as
    `mixtral_runtime.settings` reads it, and is added here with one line."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    supervision: SupervisionSettings = field(default_factory=SupervisionSettings)
    pytorch: PyTorchSettings = field(default_factory=PyTorchSettings)
    tensorrt_llm: TensorRtLlmSettings = field(default_factory=TensorRtLlmSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    admin: AdminSettings = field(default_factory=AdminSettings)
    plaintext: PlaintextSettings = field(default_factory=PlaintextSettings)

    @classmethod
    def from_environment(cls) -> "ServeConfig":
        """The file that MIXTRAL_SERVE_CONFIG names, or the defaults without one."""
        path = os.environ.get("MIXTRAL_SERVE_CONFIG")
        return cls.load(Path(path)) if path else cls()

    @classmethod
    def load(cls, path: Path) -> "ServeConfig":
        """Raises InvalidArgument naming the file, the key and what is allowed."""
        try:
            table = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"the configuration {path} cannot be read: {error}") from error
        kinds = get_type_hints(cls)
        try:
            refuse_unknown_keys(cls, table)
            return cls(**{name: read_settings(kinds[name], part, name) for name, part in table.items()})
        except InvalidArgument as error:
            raise InvalidArgument(f"{path}: {error}") from error
