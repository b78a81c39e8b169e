"""Small random Mixtral models, as transformers makes them, quantised by the project's own build; engines over them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from mixtral_build.quantize import quantize_model
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.engine import Engine, EngineLimits, FinishReason, Output, TopLogProbs
from mixtral_runtime.errors import MixtralError
from mixtral_runtime.manifest import Manifest, ModelInfo, Returns, describe_files
from mixtral_runtime.pytorch.engine import PyTorchEngine
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.pytorch.settings import PyTorchSettings
from mixtral_runtime.tensorrt_llm.engine import TensorRtLlmEngine
from mixtral_runtime.tensorrt_llm.settings import TensorRtLlmSettings

SMALL: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LIMITS: dict[str, int] = {
    "max_batch_size": 8,
    "max_input_len": 400,
    "max_seq_len": 512,
    "max_num_tokens": 128,
    "max_queue_size": 32,
}
PATIENCE_S = 60.0  # longer than any wait of a sound engine


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On models this small, threads wait for each other longer than they compute."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """make_checkpoint("int8", num_local_experts=8): a random model with SMALL's dimensions, some replaced."""

    def make(precision: str = "int8", layout: str | None = None, **dimensions: Any) -> Checkpoint:
        directory = tmp_path_factory.mktemp("model")
        torch.manual_seed(0)
        # Ten times the usual spread: with flat logits every mistake would hide below the tolerances.
        config = MixtralConfig(**SMALL | dimensions, initializer_range=0.2)
        MixtralForCausalLM(config).save_pretrained(directory / "hf")
        (directory / "hf" / "tokenizer.json").write_text("{}")  # copied along, never read by the runtime
        quantize_model(directory / "hf", directory / "checkpoint", precision, layout=layout, dtype="bfloat16")
        return Checkpoint.open(directory / "checkpoint")

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return make_checkpoint("int8")


@pytest.fixture(scope="session")
def model(checkpoint: Checkpoint) -> MixtralModel:
    """The small int8 model with the checkpoint's bfloat16 activations."""
    return MixtralModel.load(checkpoint, "cpu")


@pytest.fixture(params=[False, True], ids=["one-by-one", "launched-ahead"])
def make_engine(request: pytest.FixtureRequest, model: MixtralModel) -> Iterator[Callable[..., PyTorchEngine]]:
    """make_engine(max_batch_size=2): an engine with LIMITS, some replaced; closed when the test ends. As on a CPU, and
    with each step launched before the last is collected, as on a GPU."""
    engines: list[PyTorchEngine] = []

    def make(
        model: MixtralModel = model, kv_cache_tokens: int | None = None, reuse: bool = True, **limits: int
    ) -> PyTorchEngine:
        settings = PyTorchSettings(kv_cache_block_reuse=reuse)
        built = EngineLimits(**LIMITS | limits)
        engines.append(PyTorchEngine(model, built, kv_cache_tokens, settings, launch_ahead=request.param))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@dataclass
class Collected:
    """All outputs of one request, put together."""

    outputs: list[Output] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top_log_probs: list[TopLogProbs] = field(default_factory=list)

    def add(self, output: Output) -> None:
        assert not self.final, "an output after the final one"
        self.outputs.append(output)
        self.token_ids += output.token_ids
        self.log_probs += output.log_probs or []
        self.top_log_probs += output.top_log_probs or []
        assert output.counts.output_tokens == len(self.token_ids)

    @property
    def final(self) -> bool:
        return bool(self.outputs) and self.outputs[-1].final

    @property
    def prompt_log_probs(self) -> list[float] | None:
        return self.outputs[0].prompt_log_probs

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.outputs[-1].finish_reason

    @property
    def error(self) -> MixtralError | None:
        return self.outputs[-1].error


@pytest.fixture(scope="session")
def collect() -> Callable[..., dict[int, Collected]]:
    """collect(engine, ids): polls until each of these requests is final. Outputs of others would be a mistake."""

    def collect_all(engine: Engine, *request_ids: int) -> dict[int, Collected]:
        found = {request_id: Collected() for request_id in request_ids}
        while not all(one.final for one in found.values()):
            outputs = engine.poll(PATIENCE_S)
            assert outputs, "the engine fell silent"
            assert len({output.id for output in outputs}) == len(outputs), "two outputs of one request in one poll"
            for output in outputs:
                found[output.id].add(output)
        return found

    return collect_all


@pytest.fixture(scope="session")
def trtllm_engine_dir(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine directory that says it is TensorRT-LLM's, with the weights from which the double makes its tokens."""
    directory = tmp_path_factory.mktemp("trtllm")
    names = ["config.json", "rank0.safetensors"]
    for name in names:
        os.link(checkpoint.directory / name, directory / name)
    Manifest(
        runtime="tensorrt-llm",
        versions={"tensorrt-llm": "1.2.1"},
        gpu="sm80",
        precision="int8",
        dtype="bfloat16",
        kv_cache_dtype="bfloat16",
        limits=EngineLimits(**LIMITS),
        model=ModelInfo.of(checkpoint.config),
        returns=Returns(log_probs=True, prompt_log_probs=False, context_logits=False, generation_logits=False),
        source=None,
        files=describe_files(directory, names),
    ).write(directory)
    return directory


@pytest.fixture
def open_double(trtllm_engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TensorRtLlmEngine]]:
    """open_double(max_queue_size=1): the adapter over the double of the bindings, with these settings; closed when the
    test ends."""
    monkeypatch.setenv("MIXTRAL_TRTLLM_BINDINGS", "trtllm_double")
    engines: list[TensorRtLlmEngine] = []

    def make(**settings: Any) -> TensorRtLlmEngine:
        manifest = Manifest.load(trtllm_engine_dir)
        engines.append(TensorRtLlmEngine.open(trtllm_engine_dir, manifest, TensorRtLlmSettings(**settings)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
