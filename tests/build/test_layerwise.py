"""Layer-by-layer execution: the same results as the whole model at once, with one layer in memory."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import MixtralForCausalLM

from mixtral_build.layer_source import CheckpointLayerSource, HfLayerSource, LayerSource
from mixtral_build.layerwise import HiddenStates, Samples, logits_chunks, run_layers, walk_layers
from mixtral_build.quantize import quantize_model
from mixtral_build.texts import read_texts
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.tokenizer import load_tokenizer

SAMPLES = Samples([[1, 17, 5, 90, 33, 2, 77], [4], [9, 9, 9, 60, 61, 62, 63, 64, 8, 7, 6, 5, 4, 3]])


def logits_of(source: LayerSource, states: HiddenStates) -> list[Tensor]:
    """[tokens, vocab] of each sample."""
    pieces: dict[int, list[Tensor]] = defaultdict(list)
    for sample, start, logits in logits_chunks(source, states):
        assert start == sum(map(len, pieces[sample]))
        pieces[sample].append(logits)
    return [torch.cat(pieces[i]) for i in range(len(states.samples))]


def assert_all_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def reference(saved_model: Path) -> list[Tensor]:
    model = MixtralForCausalLM.from_pretrained(saved_model, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(torch.tensor([list(ids)])).logits[0] for ids in SAMPLES.token_ids]


def test_a_hugging_face_model_gives_the_logits_of_transformers(saved_model: Path, reference: list[Tensor]) -> None:
    source = HfLayerSource(saved_model)
    assert_all_close(logits_of(source, run_layers(source, SAMPLES)), reference)


@pytest.mark.parametrize("precision", ["16bit", "int8"])
def test_a_checkpoint_gives_the_logits_of_the_engines_model(saved_model: Path, tmp_path: Path, precision: str) -> None:
    quantize_model(saved_model, tmp_path / "checkpoint", precision)
    model = MixtralModel.load(Checkpoint.open(tmp_path / "checkpoint"), "cpu", torch.float32)
    source = CheckpointLayerSource(tmp_path / "checkpoint")
    expected = [model.forward_logits(list(ids)) for ids in SAMPLES.token_ids]
    assert_all_close(logits_of(source, run_layers(source, SAMPLES)), expected)


def test_the_demo_model_gives_the_logits_of_transformers(demo_model: Path) -> None:
    tokenizer = load_tokenizer(demo_model)
    samples = Samples([tokenizer(text)["input_ids"] for text in list(read_texts(demo_model / "heldout.jsonl"))[:6]])
    model = MixtralForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = [model(torch.tensor([list(ids)])).logits[0] for ids in samples.token_ids]
    source = HfLayerSource(demo_model)
    assert_all_close(logits_of(source, run_layers(source, samples)), expected)


def test_small_chunks_and_spilled_states_change_nothing(
    saved_model: Path, reference: list[Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mixtral_build.layerwise.CHUNK_TOKENS", 8)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = HfLayerSource(saved_model)
    kept = run_layers(source, SAMPLES)
    spilled = run_layers(source, SAMPLES, spill_bytes=100)
    assert (kept.spilled, spilled.spilled) == (False, True)
    assert torch.equal(kept.chunk(range(3)), spilled.chunk(range(3)))
    assert_all_close(logits_of(source, spilled), reference)
    assert not list(tmp_path.iterdir())  # the file has no name any more


def test_chunks_are_whole_samples_and_cover_all_of_them() -> None:
    states = HiddenStates(Samples([[1] * n for n in (3, 4, 20, 1, 2)]), 8, torch.float32)
    assert list(states.chunks(8)) == [range(2), range(2, 3), range(3, 5)]


def test_observers_see_what_each_part_is_given(saved_model: Path) -> None:
    """Against hooks on transformers' own modules."""
    model = MixtralForCausalLM.from_pretrained(saved_model, dtype=torch.float32).eval()
    expected: dict[str, list[Tensor]] = defaultdict(list)
    hooked = model.model.layers[1]
    modules = {
        "attention.qkv": hooked.self_attn.q_proj,
        "attention.dense": hooked.self_attn.o_proj,
        "mlp.router": hooked.mlp if hasattr(hooked, "mlp") else hooked.block_sparse_moe,
    }
    for name, module in modules.items():
        module.register_forward_pre_hook(lambda _, inputs, name=name: expected[name].append(inputs[0].flatten(0, -2)))
    values: list[Tensor] = []
    hooked.self_attn.v_proj.register_forward_hook(lambda _, inputs, output: values.append(output[0]))
    with torch.inference_mode():
        caches = [model(torch.tensor([list(ids)]), use_cache=True).past_key_values for ids in SAMPLES.token_ids]
    # [tokens, kv_heads * head_size] of each sample
    keys = [cache.layers[1].keys[0].transpose(0, 1).flatten(1) for cache in caches]

    seen: dict[str, list[Tensor]] = defaultdict(list)
    routed: dict[tuple[str, int], Tensor] = {}

    def observe(layer: int, name: str, x: Tensor, expert: int | None = None) -> None:
        if layer == 1 and expert is None:
            seen[name].append(x.clone())
        elif layer == 1:
            assert expert is not None
            routed[name, expert] = x.clone()

    _, layer, _ = list(walk_layers(HfLayerSource(saved_model), SAMPLES, observe=observe))[1]
    for name, tensors in {**expected, "attention.keys": keys, "attention.values": values}.items():
        torch.testing.assert_close(torch.cat(seen[name]), torch.cat(tensors), rtol=1e-4, atol=1e-4)

    config = model.config
    gate = model.state_dict()["model.layers.1.mlp.gate.weight"]
    normed = torch.cat(seen["mlp.router"])
    chosen = (normed @ gate.T).topk(config.num_experts_per_tok).indices  # [tokens, top_k]
    for expert in range(config.num_local_experts):
        rows = (chosen == expert).any(-1)
        if not rows.any():
            assert ("mlp.fc", expert) not in routed
            continue
        torch.testing.assert_close(routed["mlp.fc", expert], normed[rows])
        up, gated = layer.experts.fc[expert](normed[rows]).chunk(2, dim=-1)
        torch.testing.assert_close(routed["mlp.proj", expert], torch.nn.functional.silu(gated) * up)


def test_the_routing_width_can_be_overridden(saved_model: Path) -> None:
    counts: dict[int, int] = defaultdict(int)

    def observe(layer: int, name: str, x: Tensor, expert: int | None = None) -> None:
        if name == "mlp.fc":
            counts[layer] += len(x)

    run_layers(HfLayerSource(saved_model, experts_per_token=3), SAMPLES, observe=observe)
    assert dict(counts) == {0: 3 * SAMPLES.tokens, 1: 3 * SAMPLES.tokens}


def test_callbacks_follow_the_layers(saved_model: Path) -> None:
    layers: list[int] = []
    steps: list[tuple[int, int]] = []
    run_layers(
        HfLayerSource(saved_model),
        SAMPLES,
        on_layer=lambda index, layer, states: layers.append(index),
        progress=lambda done, total: steps.append((done, total)),
    )
    assert layers == [0, 1]
    assert steps == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([[1] * 129], "a sample has 129 tokens, the model's limit is 128"),
        ([[1, 96]], "a sample has token 96, the model's vocabulary has 96"),
        ([[1], []], "there are 2 samples, each needs at least one token"),
        ([], "there are 0 samples"),
    ],
)
def test_samples_that_the_model_cannot_run_are_refused(
    saved_model: Path, token_ids: list[list[int]], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        run_layers(HfLayerSource(saved_model), Samples(token_ids))


MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from mixtral_build.layer_source import HfLayerSource
from mixtral_build.layerwise import Samples, logits_chunks, run_layers
torch.set_num_threads(1)

def anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError

torch.ones(64, 64) @ torch.ones(64, 64)  # what the library itself needs
before = peak = anonymous()
running = True

def watch() -> None:
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
source = HfLayerSource(Path(sys.argv[1]), dtype=torch.float32)
states = run_layers(source, Samples([[i % 90 for i in range(64)]] * 8))
for _ in logits_chunks(source, states):
    pass
running = False
thread.join()
print(peak - before)
"""


def test_memory_is_bounded_by_one_layer(tmp_path: Path) -> None:
    """A model of ten layers with 4 MiB each in 16 bits is run in float32, which would be 80 MiB at once."""
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=96,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=10,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    model = MixtralForCausalLM(config).to(torch.bfloat16)
    layer_bytes = sum(p.numel() for p in model.model.layers[0].parameters()) * 4
    assert layer_bytes * 10 > 80e6
    model.save_pretrained(tmp_path)
    peak = int(
        subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path)], check=True, capture_output=True, text=True
        ).stdout
    )
    assert peak < 3 * layer_bytes  # of ten: a layer, the activations of 512 tokens, and what the allocator keeps
