"""The synthetic checkpoint has the published one's tensors and shards."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from make_synthetic_checkpoint import (
    SHARD_BYTES,
    TOKENIZER,
    fill_vocabulary,
    model_config,
    size_of,
    source_specs,
    split,
    values,
)
from tokenizers import Tokenizer

from mixtral_runtime.formats import TensorSpec


def test_all_layers_together_are_mixtral_8x7b() -> None:
    specs = source_specs(model_config(32))
    assert sum(map(size_of, specs)) == 93405585408  # total_size of the published index
    shards = list(split(specs, SHARD_BYTES))
    assert [spec for shard in shards for spec in shard] == specs
    assert max(sum(map(size_of, shard)) for shard in shards) <= SHARD_BYTES
    assert len(shards) in (19, 20)  # the published one has 19
    assert "model.layers.31.block_sparse_moe.experts.7.w2.weight" in {spec.name for spec in specs}


def test_a_narrower_one_keeps_the_proportions_and_the_heads_size() -> None:
    specs = {spec.name: spec.shape for spec in source_specs(model_config(8, narrower=4))}
    assert specs["model.layers.7.block_sparse_moe.experts.7.w1.weight"] == (3584, 1024)
    assert specs["model.layers.0.self_attn.k_proj.weight"] == (2 * 128, 1024)
    assert sum(torch.Size(shape).numel() for shape in specs.values()) == pytest.approx(0.79e9, rel=0.01)


def test_every_id_has_a_word_and_texts_keep_their_ids() -> None:
    small = json.loads((TOKENIZER / "tokenizer.json").read_text())
    before, after = (Tokenizer.from_str(json.dumps(t)) for t in (small, fill_vocabulary(small, 32000)))
    assert after.get_vocab_size() == 32000
    assert after.decode([31999]) == "w31999"
    text = "Once upon a time there was a w2000."
    assert after.encode(text).ids == before.encode(text).ids


def test_values_depend_on_seed_and_name_alone() -> None:
    spec = TensorSpec("a.weight", (256, 256), torch.bfloat16)
    found = values(spec, 0)
    assert torch.equal(found, values(spec, 0))
    assert not torch.equal(found, values(spec, 1))
    assert not torch.equal(found, values(TensorSpec("b.weight", (256, 256), torch.bfloat16), 0))
    assert float(found.float().std()) == pytest.approx(0.02, rel=0.02)
    assert values(TensorSpec("norm.weight", (8,), torch.bfloat16), 0).tolist() == [1.0] * 8
