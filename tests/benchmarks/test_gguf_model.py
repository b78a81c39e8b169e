"""The GGUF file of a Mixtral: llama.cpp's names and shapes, and values that an independent reading of the format gives
back."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import gguf_model
from safetensors.torch import load_file, save_file

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.errors import InvalidArgument

LAYERS, HIDDEN, INNER, HEADS, KEY_HEADS, HEAD_SIZE, EXPERTS, VOCABULARY = 2, 64, 96, 4, 2, 16, 4, 40


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory, mixtral_8x7b_json: dict[str, Any]) -> Path:
    """A small Mixtral whose dimensions all differ, so that no mix-up of them can pass."""
    folder = tmp_path_factory.mktemp("small-mixtral")
    config = mixtral_8x7b_json | {
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": HEAD_SIZE,
        "num_local_experts": EXPERTS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,), "lm_head": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        attention, moe = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.block_sparse_moe"
        shapes |= {f"model.layers.{layer}.{norm}_layernorm": (HIDDEN,) for norm in ("input", "post_attention")}
        shapes[f"{attention}.q_proj"] = (HEADS * HEAD_SIZE, HIDDEN)
        shapes |= {f"{attention}.{name}_proj": (KEY_HEADS * HEAD_SIZE, HIDDEN) for name in "kv"}
        shapes[f"{attention}.o_proj"] = (HIDDEN, HEADS * HEAD_SIZE)
        shapes[f"{moe}.gate"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            shapes |= {f"{moe}.experts.{expert}.{name}": (INNER, HIDDEN) for name in ("w1", "w3")}
            shapes[f"{moe}.experts.{expert}.w2"] = (HIDDEN, INNER)
    generator = torch.Generator().manual_seed(1)
    weights = {
        f"{name}.weight": torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def weights(model_dir: Path) -> dict[str, torch.Tensor]:
    return {name.removesuffix(".weight"): tensor for name, tensor in load_file(model_dir / "model.safetensors").items()}


@pytest.fixture(scope="module")
def reader(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> gguf.GGUFReader:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    gguf_model.write(model_dir, path)
    return gguf.GGUFReader(path)


@pytest.fixture(scope="module")
def stored(reader: gguf.GGUFReader) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in reader.tensors}


def q8_0(weight: torch.Tensor) -> np.ndarray[Any, Any]:
    """The gguf package's own quantiser."""
    quantised: np.ndarray[Any, Any] = gguf.quants.quantize(weight.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
    return quantised


def dequantised(tensor: gguf.ReaderTensor) -> torch.Tensor:
    """Straight from the format: blocks of a float16 scale and 32 int8 values."""
    blocks = np.ascontiguousarray(tensor.data).reshape(-1, 34)
    values = blocks[:, 2:].view(np.int8) * blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return torch.from_numpy(values.reshape([int(size) for size in reversed(tensor.shape)]))


def test_every_tensor_has_the_name_that_llama_cpp_gives_it(stored: dict[str, gguf.ReaderTensor]) -> None:
    arch = gguf.MODEL_ARCH.LLAMA
    unused = {"rope_freqs", "attn_rot_embd", "ffn_gate", "ffn_up", "ffn_down"}  # of llamas without experts
    names = {gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[arch]}
    expected = {
        f"{name.format(bid=layer)}.weight"
        for name in names
        for layer in range(LAYERS)
        if name.removeprefix("blk.{bid}.") not in unused
    }
    assert set(stored) == expected


def test_the_metadata_are_the_model_s(reader: gguf.GGUFReader) -> None:
    def value(key: str) -> Any:
        return reader.fields[key].contents()

    assert value("general.architecture") == "llama"
    assert value("general.file_type") == gguf.LlamaFileType.MOSTLY_Q8_0
    assert {key: value(f"llama.{key}") for key in ("block_count", "embedding_length", "feed_forward_length")} == {
        "block_count": LAYERS,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
    }
    assert (value("llama.attention.head_count"), value("llama.attention.head_count_kv")) == (HEADS, KEY_HEADS)
    assert value("llama.attention.key_length") == value("llama.rope.dimension_count") == HEAD_SIZE
    assert (value("llama.expert_count"), value("llama.expert_used_count")) == (EXPERTS, 2)
    assert value("llama.rope.freq_base") == 1e6
    assert value("llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    assert value("llama.vocab_size") == VOCABULARY


def test_matrices_are_quantised_as_gguf_does_it(
    stored: dict[str, gguf.ReaderTensor], weights: dict[str, torch.Tensor]
) -> None:
    pairs = {
        "token_embd": "model.embed_tokens",
        "output": "lm_head",
        "blk.1.attn_v": "model.layers.1.self_attn.v_proj",
        "blk.1.attn_output": "model.layers.1.self_attn.o_proj",
    }
    for ours, theirs in pairs.items():
        assert stored[f"{ours}.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0
        assert np.array_equal(stored[f"{ours}.weight"].data, q8_0(weights[theirs]))


def test_experts_are_stacked_gate_down_up(
    stored: dict[str, gguf.ReaderTensor], weights: dict[str, torch.Tensor]
) -> None:
    for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
        tensor = stored[f"blk.1.ffn_{ours}_exps.weight"]
        for expert in range(EXPERTS):
            source = weights[f"model.layers.1.block_sparse_moe.experts.{expert}.{theirs}"]
            assert np.array_equal(tensor.data[expert], q8_0(source))
        assert tuple(tensor.shape) == (*reversed(source.shape), EXPERTS)  # ggml names the innermost dimension first


def test_router_and_norms_keep_every_bit(
    stored: dict[str, gguf.ReaderTensor], weights: dict[str, torch.Tensor]
) -> None:
    pairs = {
        "blk.0.ffn_gate_inp": "model.layers.0.block_sparse_moe.gate",
        "blk.0.attn_norm": "model.layers.0.input_layernorm",
        "blk.0.ffn_norm": "model.layers.0.post_attention_layernorm",
        "output_norm": "model.norm",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(torch.from_numpy(np.array(stored[f"{ours}.weight"].data)), weights[theirs].float())


@pytest.mark.parametrize(("ours", "theirs", "heads"), [("attn_q", "q_proj", HEADS), ("attn_k", "k_proj", KEY_HEADS)])
def test_rotating_neighbours_gives_what_rotating_halves_gave(
    stored: dict[str, gguf.ReaderTensor], weights: dict[str, torch.Tensor], ours: str, theirs: str, heads: int
) -> None:
    """Hugging Face pairs row i with row i + size/2 of a head, llama.cpp row 2i with row 2i + 1; the rotated pairs must
    be the same pairs of numbers."""
    weight = weights[f"model.layers.0.self_attn.{theirs}"].float()
    x, angle = torch.linspace(-1, 1, HIDDEN), torch.linspace(0.1, 3, HEAD_SIZE // 2)
    cos, sin = angle.cos(), angle.sin()
    low, high = (weight @ x).view(heads, 2, -1).unbind(1)
    halves = low * cos - high * sin, low * sin + high * cos
    even, odd = (dequantised(stored[f"blk.0.{ours}.weight"]) @ x).view(heads, -1, 2).unbind(-1)
    neighbours = even * cos - odd * sin, even * sin + odd * cos
    for theirs_rotated, ours_rotated in zip(halves, neighbours, strict=True):
        torch.testing.assert_close(ours_rotated, theirs_rotated, rtol=0, atol=0.1)  # Q8_0 rounds
    data = stored[f"blk.0.{ours}.weight"].data
    assert not np.array_equal(data, q8_0(weights[f"model.layers.0.self_attn.{theirs}"]))


@given(heads=st.integers(1, 5), half=st.integers(1, 8), inputs=st.integers(1, 4))
def test_interleaving_only_moves_rows_within_their_head(heads: int, half: int, inputs: int) -> None:
    weight = torch.arange(heads * half * 2 * inputs).view(-1, inputs)
    moved = gguf_model.interleave_halves(weight, heads).view(heads, half, 2, inputs)
    assert torch.equal(moved.transpose(1, 2).reshape(weight.shape), weight)


def test_rows_that_are_not_whole_blocks_are_refused(mixtral_8x7b_json: dict[str, Any]) -> None:
    config = CheckpointConfig.from_hf(mixtral_8x7b_json | {"intermediate_size": 14340})
    with pytest.raises(InvalidArgument, match="intermediate_size is 14340, Q8_0 needs a multiple of 32"):
        list(gguf_model.tensors(config))
