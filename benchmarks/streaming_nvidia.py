"""NVIDIA's published tokenizer, detokenizer and ensemble as a path to measure, taken from a checkout that a user has.

The checkout is one of tensorrtllm_backend or of TensorRT-LLM with `inflight_batcher_llm` still in it. Nothing of it is
kept: a repository is written into a temporary folder, where the plain ensemble's engine model stands for NVIDIA's,
behind NVIDIA's own configuration, so that the ensemble has all its tensors.
"""

import shutil
from pathlib import Path
from string import Template

from mixtral_runtime.errors import InvalidArgument

FOLDERS = ("all_models/inflight_batcher_llm", "triton_backend/all_models/inflight_batcher_llm")
TEXT_MODELS = ("preprocessing", "postprocessing")  # taken with their code; of the others the configuration only
MODELS = (*TEXT_MODELS, "ensemble", "tensorrt_llm")
# What the configurations leave open, as NVIDIA's own examples fill it; the rest is read by the C++ engine model only.
SETTINGS = {
    "triton_backend": "python",
    "triton_max_batch_size": "64",
    "decoupled_mode": "True",
    "max_queue_delay_microseconds": "0",
    "max_queue_size": "0",
    "preprocessing_instance_count": "1",
    "postprocessing_instance_count": "1",
    "skip_special_tokens": "True",
    "add_special_tokens": "True",
    "logits_datatype": "TYPE_FP32",
    "encoder_input_features_data_type": "TYPE_FP16",
    "prompt_embedding_table_data_type": "TYPE_FP16",
}


def models_of(checkout: Path) -> Path:
    """The folder of the models. Raises InvalidArgument when this is no such checkout."""
    if not checkout.is_dir():
        raise InvalidArgument(f"{checkout} is no folder, it must be a checkout of tensorrtllm_backend or TensorRT-LLM")
    found = [folder for name in FOLDERS if (folder := checkout / name).is_dir()]
    if not found:
        raise InvalidArgument(f"{checkout} has neither {' nor '.join(FOLDERS)}, so it is no checkout with the models")
    needed = [f"{name}/config.pbtxt" for name in MODELS] + [f"{name}/1/model.py" for name in TEXT_MODELS]
    missing = [name for name in needed if not (found[0] / name).is_file()]
    if missing:
        raise InvalidArgument(f"{found[0]} has no {', no '.join(missing)}")
    return found[0]


def write_repository(models: Path, engine_model: Path, tokenizer_dir: Path, repository: Path) -> None:
    """A model repository that can be served. engine_model: the model.py that stands for `tensorrt_llm`."""
    for name in MODELS:
        version = repository / name / "1"
        if name in TEXT_MODELS:
            shutil.copytree(models / name / "1", version)
        else:
            version.mkdir(parents=True)
        config = Template((models / name / "config.pbtxt").read_text(encoding="utf-8"))
        text = config.safe_substitute(SETTINGS, tokenizer_dir=str(tokenizer_dir))
        (repository / name / "config.pbtxt").write_text(text, encoding="utf-8")
    shutil.copyfile(engine_model, repository / "tensorrt_llm" / "1" / "model.py")
