"""A Hugging Face checkpoint with Mixtral-8x7B's shapes and random weights, for measuring at its real sizes.

Sharded as the published one is, in bfloat16, the same bytes for the same seed. 2 layers have 6.3 GB; a quarter of the
width (`--narrower 4`) and 8 layers have 0.8 billion parameters in 1.6 GB.
"""

import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from mixtral_build.hf_checkpoint import INDEX_NAME, TOKENIZER_FILES
from mixtral_build.staging import staged_directory
from mixtral_runtime.checkpoint import CONFIG_NAME
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.formats import TensorSpec
from mixtral_runtime.safetensors_writer import SafetensorsWriter
from mixtral_runtime.tensor_names import weights

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "models" / "tiny-mixtral"
SHARD_BYTES = 4_900_000_000  # of the published shards
SPREAD = 0.02  # standard deviation, the initializer_range of the published config

CONFIG: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": SPREAD,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 32000,
}


# What shrinks with the width; the heads keep their size.
WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


def model_config(layers: int, narrower: int = 1) -> dict[str, Any]:
    """narrower: what Mixtral-8x7B's widths are divided by."""
    return CONFIG | {"num_hidden_layers": layers} | {name: CONFIG[name] // narrower for name in WIDTHS}


def source_specs(hf_config: dict[str, Any]) -> list[TensorSpec]:
    """Every tensor of the Hugging Face model, in the order of the forward pass."""
    config = CheckpointConfig.from_hf(hf_config)
    parts = (part for weight in weights(config) for of_expert in weight.parts for part in of_expert)
    return [replace(part, dtype=torch.bfloat16) for part in parts]


def size_of(spec: TensorSpec) -> int:
    return torch.Size(spec.shape).numel() * spec.dtype.itemsize


def split(specs: list[TensorSpec], shard_bytes: int) -> Iterator[list[TensorSpec]]:
    """In order; each shard has at most shard_bytes unless one tensor alone has more."""
    shard: list[TensorSpec] = []
    for spec in specs:
        if shard and sum(map(size_of, shard)) + size_of(spec) > shard_bytes:
            yield shard
            shard = []
        shard.append(spec)
    yield shard


def values(spec: TensorSpec, seed: int) -> torch.Tensor:
    """Norms are ones. Each tensor has its own seed, so that it does not depend on how many layers there are."""
    if len(spec.shape) == 1:
        return torch.ones(spec.shape, dtype=spec.dtype)
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(spec.name.encode()))
    return torch.empty(spec.shape, dtype=spec.dtype).normal_(0, SPREAD, generator=generator)


def fill_vocabulary(tokenizer: dict[str, Any], size: int) -> dict[str, Any]:
    """A tokenizer.json with a word for every id that the model can generate: they are never the result of a merge."""
    vocabulary = dict(tokenizer["model"]["vocab"])
    vocabulary |= {f"▁w{i}": i for i in range(len(vocabulary), size)}
    return tokenizer | {"model": tokenizer["model"] | {"vocab": vocabulary}}


@click.command(help=__doc__)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.option("--layers", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--narrower", default=1, show_default=True, type=click.Choice([1, 2, 4, 8]), help="Divides the widths.")
@click.option("--seed", default=0, show_default=True)
@click.option("--shard-bytes", default=SHARD_BYTES, show_default=True, type=click.IntRange(min=1))
def main(model_dir: Path, layers: int, narrower: int, seed: int, shard_bytes: int) -> None:
    config = model_config(layers, narrower)
    specs = source_specs(config)
    shards = list(split(specs, shard_bytes))
    weight_map: dict[str, str] = {}
    with staged_directory(model_dir) as partial:
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            with SafetensorsWriter(partial / name, shard) as writer:
                for spec in shard:
                    writer.write(spec.name, values(spec, seed))
                    weight_map[spec.name] = name
            click.echo(f"{name}: {len(shard)} tensors, {sum(map(size_of, shard)) / 1e9:.2f} GB", err=True)
        index = {"metadata": {"total_size": sum(map(size_of, specs))}, "weight_map": weight_map}
        (partial / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        (partial / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for path in TOKENIZER.iterdir():
            if path.name in TOKENIZER_FILES:
                shutil.copy(path, partial / path.name)
        tokenizer = fill_vocabulary(json.loads((TOKENIZER / "tokenizer.json").read_text()), config["vocab_size"])
        (partial / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    click.echo(str(model_dir))


if __name__ == "__main__":
    main()
