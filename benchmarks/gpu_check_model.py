"""A small random Mixtral on the device, through the model and through the engine, beside float64 on the CPU."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from gpu_model import MIXTRAL_8X7B, RandomCheckpoint, config_of, random_model
from gpu_reference import Reference
from torch import Tensor

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.engine import EngineLimits, Request
from mixtral_runtime.pytorch.engine import PyTorchEngine
from mixtral_runtime.pytorch.model import MixtralModel

# Heads, groups and experts as 8x7B has them, everything else smaller; float64 on a CPU takes a second.
CHECKED = replace(
    MIXTRAL_8X7B,
    vocab_size=2048,
    hidden_size=1024,
    intermediate_size=1792,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=2048,
)
VARIANTS = (("16bit", "16bit"), ("int8", "16bit"), ("int8", "fp8"), ("fp8", "fp8"), ("awq", "16bit"))
# Of the median token: where two experts are nearly equal, 16-bit arithmetic may choose the other, and that token's
# logits are quite different. FP8 rounds activations to 4 significant bits, so that noise of 16 bits becomes larger.
LIMITS = {"16bit": 0.04, "fp8 KV": 0.10, "fp8": 0.22}
LIKELY_SHARE = 0.9  # of generated tokens that must be near the likeliest of the reference
NEAR = 0.25  # of the logits' standard deviation, times 1 (16 bit) or more (FP8)
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Check:
    """Passes when measured <= limit."""

    name: str
    measured: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.measured <= self.limit  # NaN never passes


@torch.inference_mode()
def check_model(
    shape: CheckpointConfig,
    precision: str,
    kv_cache: str,
    device: torch.device,
    prompt_lengths: tuple[int, ...],
    output_tokens: int,
) -> Iterator[Check]:
    """Logits of a whole prompt, whether a repetition gives the same bits, and tokens and log probabilities of several
    requests that run together, their prompts in pieces."""
    config = config_of(shape, precision, kv_cache)
    checkpoint = RandomCheckpoint(config, torch.device("cpu"))
    reference = Reference(checkpoint)
    model = random_model(config, device, made_on=torch.device("cpu"))
    name = f"{precision}, {kv_cache} KV"
    limit = LIMITS["fp8" if precision == "fp8" else "fp8 KV" if kv_cache == "fp8" else "16bit"]
    token_ids = prompt(max(prompt_lengths), 1, config.vocab_size)
    logits = model.forward_logits(token_ids)
    yield Check(f"{name}: logits of a prompt, median error", median_error(logits, reference.logits(token_ids)), limit)
    yield Check(f"{name}: values that differ when repeated", _differences(logits, model, token_ids), 0.0)
    prompts = [prompt(length, 2 + i, config.vocab_size) for i, length in enumerate(prompt_lengths)]
    generated = generate(model, prompts, output_tokens)
    errors, unlikely, spread = [], 0, 1.0
    for prompt_ids, (tokens, log_probs) in zip(prompts, generated, strict=True):
        expected = reference.logits([*prompt_ids, *tokens])[len(prompt_ids) - 1 : -1]  # [outputs, vocab]
        spread = float(expected.std())
        chosen = expected[torch.arange(len(tokens)), torch.tensor(tokens)]
        unlikely += int((expected.amax(-1) - chosen > NEAR * spread * limit / LIMITS["16bit"]).sum())
        normalised = expected.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)]
        errors += (normalised - torch.tensor(log_probs, dtype=torch.float64)).abs().tolist()
    count = sum(len(tokens) for tokens, _ in generated)
    yield Check(f"{name}: generated log probabilities, median error", statistics.median(errors) / spread, limit)
    yield Check(f"{name}: generated tokens that are not likely, share", unlikely / count, 1 - LIKELY_SHARE)


def prompt(length: int, seed: int, vocabulary: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(one) for one in torch.randint(0, vocabulary, (length,), generator=generator)]


def median_error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖ of each row, the median of the rows; NaN where any is."""
    rows = (found.double().cpu() - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(rows.median()) if bool(rows.isfinite().all()) else float("nan")


def _differences(logits: Tensor, model: MixtralModel, token_ids: list[int]) -> float:
    return float((model.forward_logits(token_ids) != logits).sum())


def generate(model: MixtralModel, prompts: list[list[int]], output_tokens: int) -> list[tuple[list[int], list[float]]]:
    """Tokens and their log probabilities of all requests at once, greedily. Raises RuntimeError where one fails."""
    longest = max(map(len, prompts)) + output_tokens
    # Steps shorter than the prompts, so that these are read in pieces beside sequences that are decoded.
    limits = EngineLimits(len(prompts), longest - 1, longest, max(len(prompts), longest // 3))
    engine = PyTorchEngine(model, limits, kv_cache_tokens=64 * len(prompts) * (-(-longest // 32)))
    found: dict[int, tuple[list[int], list[float]]] = {}
    try:
        for one in prompts:
            found[engine.submit(Request(one, output_tokens, return_log_probs=True))] = ([], [])
        live, until = set(found), time.monotonic() + PATIENCE_S
        while live:
            for output in engine.poll(1.0):
                if output.error is not None:
                    raise RuntimeError(f"the engine failed a request: {output.error}")
                found[output.id][0].extend(output.token_ids)
                found[output.id][1].extend(output.log_probs or [])
                if output.final:
                    live.discard(output.id)
            if live and time.monotonic() > until:
                raise RuntimeError(f"no answer within {PATIENCE_S:.0f} s")
    finally:
        engine.close()
    return list(found.values())
