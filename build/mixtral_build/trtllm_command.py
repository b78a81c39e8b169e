"""The `trtllm-build` command line for a checkpoint, a GPU and an aim.

Flags, choices and the builder's rules are TensorRT-LLM 1.2's (tensorrt_llm/commands/build.py, builder.py,
plugin/plugin.py; `data/trtllm_build_flags.json` has every flag); which to set follows its performance tuning guide.
"""

from pathlib import Path

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.devices import Device, check_fp8
from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.plan import TOKENS_PER_BLOCK

PROGRAM = "trtllm-build"
TIMING_CACHE_NAME = "model.cache"
WEIGHT_ONLY = {"W8A16", "W4A16", "W4A16_AWQ"}
UNLISTED = {"W4A16_AWQ"}  # not in NVIDIA's precision table for Mixtral, though the code has the path


def kernel_layout(device: Device) -> str:
    """The layout of int8 weights that the GPU's kernels read."""
    return "sm90" if 90 <= device.sm < 100 else "sm80"


def trtllm_build_command(
    config: CheckpointConfig,
    device: Device,
    limits: EngineLimits,
    *,
    checkpoint_dir: Path,
    engine_dir: Path,
    timing_cache: Path | None = None,
) -> list[str]:
    """The program and its arguments. timing_cache: of an earlier build on the same GPU and version, to begin with.

    Raises InvalidArgument for a combination that TensorRT-LLM refuses or that is known to give a worse engine than it
    seems, and for int8 weights in another layout than the GPU's.
    """
    check_combination(config, device)
    layout = config.layout
    if layout not in (None, kernel_layout(device)):
        raise InvalidArgument(
            f"the int8 weights are in the layout {layout}, {device.name} needs {kernel_layout(device)}; "
            f"`mixtral-build convert CHECKPOINT_DIR OUT --layout {kernel_layout(device)}` converts them"
        )
    fp8_weights = config.quantization.quant_algo == "FP8"
    fp8_attention = fp8_weights and config.quantization.kv_cache_quant_algo == "FP8"
    flags: dict[str, object] = {
        "--checkpoint_dir": checkpoint_dir,
        "--output_dir": engine_dir,
        "--max_batch_size": limits.max_batch_size,
        "--max_input_len": limits.max_input_len,
        "--max_seq_len": limits.max_seq_len,
        "--max_num_tokens": limits.max_num_tokens,
        "--max_beam_width": 1,
        "--kv_cache_type": "paged",
        "--tokens_per_block": TOKENS_PER_BLOCK,
        "--remove_input_padding": "enable",  # in-flight batching needs it
        "--gpt_attention_plugin": "auto",
        # It takes the GEMMs that are not quantised, lm_head and the router; FP8 engines are faster without.
        "--gemm_plugin": "disable" if fp8_weights else "auto",
        "--moe_plugin": "auto",
        "--context_fmha": "enable",
        # KV cache reuse and chunked context depend on it.
        "--use_paged_context_fmha": "enable",
        # The builder forces it on with an FP8 KV cache and off without one; said here, so that the command tells.
        "--use_fp8_context_fmha": "enable" if fp8_attention else "disable",
        "--multiple_profiles": "enable",
        "--logits_dtype": "float32",
        "--workers": config.mapping.world_size,
        "--output_timing_cache": engine_dir / TIMING_CACHE_NAME,
        "--log_level": "info",
    }
    if config.mapping.world_size > 1:
        flags["--nccl_plugin"] = "auto"
    if timing_cache is not None:
        flags["--input_timing_cache"] = timing_cache
    return [PROGRAM, *(str(part) for flag in flags.items() for part in flag)]


def check_combination(config: CheckpointConfig, device: Device) -> None:
    """Raises InvalidArgument with the reason for what TensorRT-LLM cannot build for this GPU, or only to the user's
    loss."""
    weights, kv_cache = config.quantization.quant_algo, config.quantization.kv_cache_quant_algo
    if not device.is_gpu:
        raise InvalidArgument("TensorRT-LLM needs a GPU, --gpu is cpu; use --runtime pytorch")
    if weights == "W4A16_GPTQ":
        raise InvalidArgument(
            "W4A16_GPTQ weights (imported from AutoAWQ) are stored as the PyTorch runtime reads them, TensorRT-LLM "
            "would need its kernels' layout; use --runtime pytorch"
        )
    if weights == "FP8" or kv_cache == "FP8":
        check_fp8(device)
    if weights in WEIGHT_ONLY and 100 <= device.sm < 120:
        raise InvalidArgument(
            f"{weights} weights cannot be built for {device.name} ({device.architecture.upper()}): TensorRT-LLM 1.2 "
            f"refuses int8 and int4 weights on SM100 to SM119; use --precision fp8 or 16bit"
        )
    if kv_cache == "FP8" and weights != "FP8":
        raise InvalidArgument(
            f"an FP8 KV cache with {weights or '16-bit'} weights makes TensorRT-LLM drop paged context attention, and "
            f"with it KV cache reuse and chunked prompts; use --kv-cache 16bit, or --precision fp8"
        )


def warnings(config: CheckpointConfig, device: Device) -> list[str]:
    """What the user should know of a combination that is allowed."""
    found = []
    algorithm = config.quantization.quant_algo
    if algorithm in UNLISTED:
        found.append(f"NVIDIA does not list {algorithm} for Mixtral: prove the engine's quality before it serves")
    if algorithm == "W8A16" and device.sm >= 90:
        found.append(f"int8 experts run with the A100's kernels on {device.architecture.upper()}; fp8 is faster there")
    if algorithm == "FP8" and config.quantization.kv_cache_quant_algo is None:
        found.append("FP8 weights with a 16-bit KV cache: attention stays in 16 bit, and half as many tokens fit")
    return found
