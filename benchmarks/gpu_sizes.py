"""What `gpu.py` measures: all of it, in the order of importance, and a miniature that a CPU runs in seconds."""

from dataclasses import dataclass

import torch
from gpu_model import MINIATURE, MIXTRAL_8X7B

from mixtral_runtime.config import CheckpointConfig

PRECISIONS = ("int8", "fp8", "awq", "16bit")


@dataclass(frozen=True, slots=True)
class Load:
    """Requests at once, tokens of each prompt and of each answer."""

    batch: int
    input: int
    output: int

    @property
    def tokens(self) -> int:
        return self.input + self.output


@dataclass(frozen=True, slots=True)
class Sizes:
    """loads: by precision. rounds: of a load of one request. prefill: tokens of a prompt alone. steps: (batch, context)
    of the model's step alone. matrix_tokens, attention, chunks: of `gpu_kernels`. for_s: of each repeated timing.
    budgets_s: after so long a precision or part gives way to the next."""

    shape: CheckpointConfig
    loads: dict[str, tuple[Load, ...]]
    rounds: int
    prefill: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]
    matrix_tokens: tuple[int, ...]
    attention: tuple[tuple[int, int, int], ...]
    peer: tuple[int, int]  # context, positions of the static cache
    max_num_tokens: int
    for_s: float
    copy_bytes: int
    matrix: int
    budgets_s: dict[str, float]


def _loads(input_tokens: int, output_tokens: int, *batches: int) -> tuple[Load, ...]:
    return tuple(Load(batch, input_tokens, output_tokens) for batch in batches)


_LATENCY = _loads(512, 128, 1, 8, 32, 128)
_OTHERS = (*_loads(1000, 50, 1, 32), *_loads(128, 128, 1, 8, 32), *_loads(1000, 50, 8, 128))
FULL = Sizes(
    shape=MIXTRAL_8X7B,
    loads={
        "int8": (*_LATENCY, *_loads(128, 128, 512, 128), *_OTHERS, *_loads(128, 128, 256, 1024)),
        "fp8": (*_LATENCY, *_loads(128, 128, 512, 1024, 256, 128), *_OTHERS),
        "awq": (*_LATENCY, *_loads(128, 128, 512, 128), *_OTHERS),
        "16bit": (*_loads(512, 128, 1, 8, 32), *_loads(128, 128, 128)),
    },
    rounds=3,
    prefill=(512, 1000, 2048, 8000),
    steps=((1, 576), (8, 576), (32, 576), (128, 576)),
    matrix_tokens=(1, 2, 4, 8, 16, 32, 128, 512, 2048),
    attention=(
        *((batch, context, 1) for batch in (16, 1, 8, 32, 128) for context in (4096, 1024, 16384, 32768)),
        (1, 512, 512),
        (1, 2048, 2048),
        (1, 8192, 2048),
        (8, 1024, 1024),
    ),
    peer=(576, 640),
    max_num_tokens=8192,
    for_s=0.1,
    copy_bytes=8 << 30,
    matrix=8192,
    budgets_s={"int8": 75, "fp8": 85, "awq": 50, "attention": 18, "peer": 45, "16bit": 35},
)
SMALL = Sizes(
    shape=MINIATURE,
    loads={
        precision: (Load(1, 24, 6), Load(3, 24, 6), Load(1, 40, 3), Load(2, 8, 8), Load(4, 8, 8))
        for precision in PRECISIONS
    },
    rounds=2,
    prefill=(24,),
    steps=((1, 40), (3, 40)),
    matrix_tokens=(1, 3),
    attention=((1, 64, 1), (3, 40, 1), (1, 40, 24)),
    peer=(20, 32),
    max_num_tokens=64,
    for_s=0.0,
    copy_bytes=1 << 20,
    matrix=64,
    budgets_s=dict.fromkeys((*PRECISIONS, "attention", "peer"), 60.0),
)


def sizes(*, miniature: bool) -> Sizes:
    return SMALL if miniature else FULL


def supports_fp8_products(device: torch.device) -> bool:
    """Whether the matrix units multiply E4M3, so that there is a ceiling to measure."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
