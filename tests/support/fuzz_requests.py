"""What is sent: tensors as the models' config.pbtxt declare them, and a request over the wire, sound or not."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
NUMPY = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
DATATYPES = (*NUMPY, "BYTES", "BF16", "", "FP99")
Way = Literal["stream", "unary", "infer", "infer-binary", "generate", "generate_stream"]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as a config.pbtxt declares it; dims without the batch dimension, -1 where any size goes."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool


@dataclass(frozen=True)
class ModelSpec:
    name: str
    decoupled: bool
    inputs: dict[str, TensorSpec]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class WireTensor:
    """values: Python values, as many as the shape says or not. raw: bytes to send instead of them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: tuple[Any, ...]
    raw: bytes | None = None
    parameters: tuple[tuple[str, Any], ...] = ()

    def to_bytes(self) -> bytes:
        """What Triton's raw form holds."""
        if self.raw is not None:
            return self.raw
        if self.datatype in NUMPY:
            numbers = [value if isinstance(value, (bool, int, float)) else 0 for value in self.values]
            with np.errstate(all="ignore"):
                if NUMPY[self.datatype] is np.uint64:
                    return b"".join(
                        (int(n) % 2**64 if n == n and abs(n) != np.inf else 0).to_bytes(8, "little") for n in numbers
                    )
                return np.array(numbers, np.float64).astype(NUMPY[self.datatype]).tobytes()
        items = [value if isinstance(value, bytes) else str(value).encode() for value in self.values]
        return b"".join(len(item).to_bytes(4, "little") + item for item in items)


@dataclass(frozen=True)
class Case:
    """One request. cancel_after_s: when the client gives up. body: sent over HTTP instead of the tensors."""

    way: Way
    model: str
    tensors: tuple[WireTensor, ...] = ()
    outputs: tuple[str, ...] = ()
    request_id: str = ""
    parameters: tuple[tuple[str, Any], ...] = ()
    cancel_after_s: float | None = None
    typed_contents: bool = False
    body: bytes | None = None
    content_type: str = "application/json"


@cache
def models() -> dict[str, ModelSpec]:
    found = {}
    for path in sorted(REPOSITORY.glob("*/config.pbtxt")):
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        inputs = {i.name: TensorSpec(i.name, _datatype(i.data_type), tuple(i.dims), i.optional) for i in config.input}
        decoupled = config.model_transaction_policy.decoupled or config.platform == "ensemble"
        found[config.name] = ModelSpec(config.name, decoupled, inputs, tuple(o.name for o in config.output))
    return found


def _datatype(number: int) -> str:
    name = model_config_pb2.DataType.Name(number).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name
