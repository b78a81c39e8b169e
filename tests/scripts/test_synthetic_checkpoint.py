"""The synthetic checkpoint has the published one's tensors and shards."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from make_synthetic_checkpoint import SHARD_BYTES, size_of, source_specs, split, values

from mixtral_runtime.formats import TensorSpec


def test_all_layers_together_are_mixtral_8x7b() -> None:
    specs = source_specs(32)
    assert sum(map(size_of, specs)) == 93405585408  # total_size of the published index
    shards = list(split(specs, SHARD_BYTES))
    assert [spec for shard in shards for spec in shard] == specs
    assert max(sum(map(size_of, shard)) for shard in shards) <= SHARD_BYTES
    assert len(shards) in (19, 20)  # the published one has 19
    assert "model.layers.31.block_sparse_moe.experts.7.w2.weight" in {spec.name for spec in specs}


def test_values_depend_on_seed_and_name_alone() -> None:
    spec = TensorSpec("a.weight", (256, 256), torch.bfloat16)
    found = values(spec, 0)
    assert torch.equal(found, values(spec, 0))
    assert not torch.equal(found, values(spec, 1))
    assert not torch.equal(found, values(TensorSpec("b.weight", (256, 256), torch.bfloat16), 0))
    assert float(found.float().std()) == pytest.approx(0.02, rel=0.02)
    assert values(TensorSpec("norm.weight", (8,), torch.bfloat16), 0).tolist() == [1.0] * 8
