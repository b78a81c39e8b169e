"""A program that has the recorded flags of `trtllm-build` and does nothing: for its `--help`."""

import argparse
from typing import Any


def program(record: dict[str, dict[str, Any]]) -> argparse.ArgumentParser:
    """A program with these flags, made as TensorRT-LLM's build.py makes its own; the help texts are free."""
    parser = argparse.ArgumentParser("trtllm-build", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    group = parser.add_argument_group("Plugin config arguments")
    for name, flag in record.items():
        default = argparse.SUPPRESS if flag["default"] == "SUPPRESS" else flag["default"]
        help_text = f"What {name} does; see ``--other {{a,b}}``, two  spaces (default: nothing)."
        owner = group if name.endswith("plugin") else parser
        if flag["type"] == "store_true":
            owner.add_argument(name, *flag.get("aliases", ()), action="store_true", default=default, help=help_text)
        elif flag["type"] == "KVCacheType":
            owner.add_argument(name, default=default, type=str, help=help_text)
        else:
            owner.add_argument(
                name,
                *flag.get("aliases", ()),
                default=default,
                type={"str": str, "int": int}[flag["type"]],
                choices=flag["choices"],
                nargs="+" if name == "--lora_dir" else None,
                help=help_text,
            )
    return parser
