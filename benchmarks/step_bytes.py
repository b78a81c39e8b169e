"""How many bytes of weights one step of a Mixtral reads, by the precision they are stored in."""

import math

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.plan import with_precision
from mixtral_runtime.tensor_names import checkpoint_format, weight_specs, weights

Q8_0 = "Q8_0"  # llama.cpp's: 34 bytes for 32 weights, and lm_head is quantised too
Q8_0_BYTES = 34 / 32
FLOAT32_BYTES = 4


def experts_met(experts: int, top_k: int, tokens: int) -> float:
    """How many different experts of a layer `tokens` tokens need together, on average, when each takes its `top_k` at
    random: exact for one token, a little more than trained routers need for several."""
    return experts * (1 - (1 - top_k / experts) ** tokens)


def step_bytes(config: CheckpointConfig, precision: str, tokens: int, met: float | None = None) -> float:
    """config: of the model in 16 bit. precision: of `--precision`, or Q8_0. tokens: of the step, all sequences
    together. Every weight that is needed counts once; the embedding, of which a step reads some rows, does not, nor do
    keys and values. met: experts of a layer that the tokens need together, None for what `experts_met` says."""
    if precision != Q8_0:
        config = with_precision(config, precision)
    weight_format = checkpoint_format(config)
    if met is None:
        met = experts_met(config.moe.num_experts, config.moe.top_k, tokens)
    share = met / config.moe.num_experts
    total = 0.0
    for weight in weights(config):
        if weight.name == "transformer.vocab_embedding.weight":
            continue
        if precision == Q8_0:
            matrix = weight.quantized or weight.name == "lm_head.weight"
            size = math.prod(weight.shape) * (Q8_0_BYTES if matrix else FLOAT32_BYTES)
        else:
            size = sum(spec.nbytes for spec in weight_specs(weight, weight_format))
        total += size * share if weight.stacked else size
    return total
