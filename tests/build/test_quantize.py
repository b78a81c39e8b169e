"""From a model as transformers saves it to a checkpoint: every weight in its place, streamed, all or nothing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from mixtral_build.hf_checkpoint import HfCheckpoint
from mixtral_build.quantize import quantize_model
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.formats import TensorSpec
from mixtral_runtime.formats.int8 import quantize_rows
from mixtral_runtime.formats.int8_layout import from_kernel_layout
from mixtral_runtime.safetensors_writer import SafetensorsWriter

LAYER = "transformer.layers.1."
HF_LAYER = "model.layers.1."
HF_MOE = f"{HF_LAYER}block_sparse_moe."


@pytest.fixture(scope="session")
def source(saved_model: Path) -> dict[str, Tensor]:
    """The model's tensors as another reader sees them."""
    tensors: dict[str, Tensor] = {}
    for path in saved_model.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


@pytest.fixture(scope="session")
def make(saved_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    def quantized(precision: str, layout: str | None = None, dtype: str | None = None) -> Checkpoint:
        target = tmp_path_factory.mktemp("quantized") / "checkpoint"
        quantize_model(saved_model, target, precision, layout=layout, dtype=dtype)
        return Checkpoint.open(target)

    return quantized


@pytest.fixture(scope="session")
def dense(make: Callable[..., Checkpoint]) -> Checkpoint:
    return make("16bit")


def test_the_model_fixture_has_several_shards(saved_model: Path) -> None:
    assert len(list(saved_model.glob("*.safetensors"))) > 1


@pytest.mark.parametrize("precision", ["16bit", "int8"])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_the_checkpoint_is_complete(make: Callable[..., Checkpoint], precision: str, dtype: str | None) -> None:
    checkpoint = make(precision, dtype=dtype)
    checkpoint.validate()
    assert checkpoint.config.dtype == (dtype or "bfloat16")
    assert checkpoint.config.layout == ("plain" if precision == "int8" else None)


def test_query_key_and_value_rows_follow_each_other(dense: Checkpoint, source: dict[str, Tensor]) -> None:
    parts = [source[f"{HF_LAYER}self_attn.{which}_proj.weight"] for which in "qkv"]
    assert torch.equal(dense.tensor(f"{LAYER}attention.qkv.weight"), torch.cat(parts))


def test_the_up_projection_comes_before_the_gate(dense: Checkpoint, source: dict[str, Tensor]) -> None:
    stacked = dense.tensor(f"{LAYER}mlp.fc.weight")  # [experts, 2 * intermediate, hidden]
    for expert in range(4):
        up, gate = (source[f"{HF_MOE}experts.{expert}.{which}.weight"] for which in ("w3", "w1"))
        assert torch.equal(stacked[expert], torch.cat([up, gate]))


def test_everything_else_is_copied(dense: Checkpoint, source: dict[str, Tensor]) -> None:
    pairs = {
        "transformer.vocab_embedding.weight": "model.embed_tokens.weight",
        "transformer.ln_f.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
        f"{LAYER}input_layernorm.weight": f"{HF_LAYER}input_layernorm.weight",
        f"{LAYER}post_layernorm.weight": f"{HF_LAYER}post_attention_layernorm.weight",
        f"{LAYER}attention.dense.weight": f"{HF_LAYER}self_attn.o_proj.weight",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(dense.tensor(ours), source[theirs]), ours
    for expert, down in enumerate(dense.tensor(f"{LAYER}mlp.proj.weight")):
        assert torch.equal(down, source[f"{HF_MOE}experts.{expert}.w2.weight"])


@pytest.mark.parametrize("precision", ["16bit", "int8"])
def test_the_router_is_float32_and_exact(
    make: Callable[..., Checkpoint], source: dict[str, Tensor], precision: str
) -> None:
    router = make(precision, dtype="float16").tensor(f"{LAYER}mlp.router.weight")
    assert torch.equal(router, source[f"{HF_MOE}gate.weight"].float())


def test_int8_weights_are_the_quantised_16_bit_ones(make: Callable[..., Checkpoint], dense: Checkpoint) -> None:
    int8 = make("int8")
    for name in ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj"):
        values, scales = quantize_rows(dense.tensor(f"{LAYER}{name}.weight"))
        assert torch.equal(int8.tensor(f"{LAYER}{name}.weight"), values)
        assert torch.equal(int8.tensor(f"{LAYER}{name}.per_channel_scale"), scales)
    unquantised = {name for name in dense.names() if dense.spec(name) == int8.spec(name)}
    assert all(torch.equal(dense.tensor(name), int8.tensor(name)) for name in unquantised)
    assert len(unquantised) == 3 + 2 * 3


@pytest.mark.parametrize("layout", ["sm80", "sm90"])
def test_a_kernel_layout_holds_the_same_values(make: Callable[..., Checkpoint], layout: str) -> None:
    plain, processed = make("int8"), make("int8", layout)
    processed.validate()
    assert processed.config.layout == layout
    for name in ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj"):
        stored = processed.tensor(f"{LAYER}{name}.weight")
        assert torch.equal(from_kernel_layout(stored, layout), plain.tensor(f"{LAYER}{name}.weight"))


def test_weights_are_cast_before_they_are_quantised(make: Callable[..., Checkpoint], source: dict[str, Tensor]) -> None:
    values, scales = quantize_rows(source[f"{HF_LAYER}self_attn.o_proj.weight"].half())
    checkpoint = make("int8", dtype="float16")
    assert torch.equal(checkpoint.tensor(f"{LAYER}attention.dense.weight"), values)
    assert torch.equal(checkpoint.tensor(f"{LAYER}attention.dense.per_channel_scale"), scales)


def test_tokenizer_files_go_along(dense: Checkpoint, saved_model: Path) -> None:
    copied = dense.directory / "tokenizer"
    assert {path.name for path in copied.iterdir()} == {
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
    }
    assert (copied / "chat_template.jinja").read_text() == (saved_model / "chat_template.jinja").read_text()


def test_the_source_is_fingerprinted(make: Callable[..., Checkpoint], model_dir: Path) -> None:
    fingerprint = HfCheckpoint.open(model_dir).fingerprint()
    assert make("int8").config.source == make("16bit").config.source == fingerprint
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    assert HfCheckpoint.open(model_dir).fingerprint() != fingerprint


def test_progress_counts_every_parameter(saved_model: Path, source: dict[str, Tensor], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    quantize_model(saved_model, tmp_path / "out", "int8", progress=lambda done, total: seen.append((done, total)))
    parameters = sum(tensor.numel() for tensor in source.values())
    assert seen[-1] == (parameters, parameters)
    assert seen == sorted(seen)


def write_big_model(directory: Path) -> int:
    """One layer of 8 experts, 180 MB in one file of zeros that takes no disk space; returns the bytes of one expert's
    largest matrix in the checkpoint."""
    hidden, inner, experts, vocabulary = 1024, 3584, 8, 512
    config = {
        "architectures": ["MixtralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "max_position_embeddings": 128,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "num_local_experts": experts,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "torch_dtype": "bfloat16",
        "vocab_size": vocabulary,
    }
    shapes = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "model.layers.0.input_layernorm.weight": (hidden,),
        "model.layers.0.post_attention_layernorm.weight": (hidden,),
        "model.layers.0.self_attn.q_proj.weight": (hidden, hidden),
        "model.layers.0.self_attn.k_proj.weight": (hidden // 4, hidden),
        "model.layers.0.self_attn.v_proj.weight": (hidden // 4, hidden),
        "model.layers.0.self_attn.o_proj.weight": (hidden, hidden),
        "model.layers.0.block_sparse_moe.gate.weight": (experts, hidden),
    }
    for expert in range(experts):
        prefix = f"model.layers.0.block_sparse_moe.experts.{expert}."
        shapes |= {f"{prefix}w1.weight": (inner, hidden), f"{prefix}w3.weight": (inner, hidden)}
        shapes |= {f"{prefix}w2.weight": (hidden, inner)}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    # Left incomplete on purpose: the header is written at once, and what is never written reads as zeros.
    SafetensorsWriter(
        directory / "model.safetensors", [TensorSpec(name, shape, torch.bfloat16) for name, shape in shapes.items()]
    )
    return 2 * inner * hidden * 2


MEASURE_PEAK = """
import re, sys, threading
from pathlib import Path
from mixtral_build.quantize import quantize_model

def anonymous_kb():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

quantize_model(Path(sys.argv[2]), Path(sys.argv[3] + "-warm"), "int8")  # libraries, buffers, thread pools
start = peak = anonymous_kb()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous_kb())

watcher = threading.Thread(target=watch)
watcher.start()
quantize_model(Path(sys.argv[1]), Path(sys.argv[3]), "int8")
done.set()
watcher.join()
print((peak - start) * 1024)
"""


def test_memory_is_a_small_multiple_of_one_experts_matrix(saved_model: Path, tmp_path: Path) -> None:
    matrix_bytes = write_big_model(tmp_path / "big")
    model_bytes = (tmp_path / "big" / "model.safetensors").stat().st_size
    arguments = [str(tmp_path / "big"), str(saved_model), str(tmp_path / "out")]
    result = subprocess.run(
        [sys.executable, "-c", MEASURE_PEAK, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    grown = int(result.stdout)
    assert grown < 5 * matrix_bytes < model_bytes / 2
