"""convert.py [--script SCRIPT] LIBRARY MODEL_DIR TARGET_DIR PRECISION DTYPE: the library's own conversion, on one GPU.

By NVIDIA's convert_checkpoint.py when its path is given, as a user would call it, else by the call that it makes.
"""

import argparse
import importlib
import subprocess
import sys


def by_script(script: str, model_dir: str, target_dir: str, precision: str, dtype: str) -> int:
    command = [sys.executable, script, "--model_dir", model_dir, "--output_dir", target_dir, "--dtype", dtype]
    if precision == "int8":
        command += ["--use_weight_only", "--weight_only_precision", "int8"]
    return subprocess.run(command, check=False).returncode


def by_call(library: str, model_dir: str, target_dir: str, precision: str, dtype: str) -> None:
    models = importlib.import_module(f"{library}.models")
    modeling = importlib.import_module(f"{library}.models.modeling_utils")
    quantization = importlib.import_module(f"{library}.quantization")
    algorithm = quantization.QuantAlgo.W8A16 if precision == "int8" else None
    # NVIDIA's table of models maps MixtralForCausalLM to this class.
    model = models.LLaMAForCausalLM.from_hugging_face(
        model_dir, dtype, quant_config=modeling.QuantConfig(quant_algo=algorithm)
    )
    model.save_checkpoint(target_dir, save_config=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--script")
    parser.add_argument("library")
    parser.add_argument("model_dir")
    parser.add_argument("target_dir")
    parser.add_argument("precision", choices=["int8", "16bit"])
    parser.add_argument("dtype")
    given = vars(parser.parse_args())
    script, library = given.pop("script"), given.pop("library")
    if script is not None:
        sys.exit(by_script(script, **given))
    by_call(library, **given)


if __name__ == "__main__":
    main()
