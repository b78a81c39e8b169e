"""The mixture of experts of one layer in every format, alternated: how fast weights are read, and products made.

MIXTRAL_CPU_KERNELS chooses the path; `none` measures plain PyTorch.
"""

import json
import math
import time
from collections.abc import Callable
from typing import Any

import click
import torch
from torch import Tensor

from mixtral_runtime.formats import Format, TensorSpec, get_format
from mixtral_runtime.kernels import cpu_path
from mixtral_runtime.pytorch.experts import Experts, route

FORMATS = {"16bit": "16bit", "int8": "int8", "fp8": "fp8", "awq": "awq", "awq with zeros": "W4A16_GPTQ"}
EXPERTS, TOP_K = 8, 2
DTYPE = torch.bfloat16
Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def random_tensor(spec: TensorSpec) -> Tensor:
    """Any weights, scales near 0.01: what is measured does not depend on them."""
    if spec.dtype is torch.int8:
        return torch.randint(-128, 128, spec.shape, dtype=torch.int8)
    if spec.dtype is torch.float8_e4m3fn:
        return torch.randint(0, 127, spec.shape, dtype=torch.int8).view(spec.dtype)  # 127 is not a number
    return (torch.rand(spec.shape, dtype=DTYPE) * 0.01 + 0.005).to(spec.dtype)


def random_experts(weight_format: Format, hidden: int, intermediate: int) -> tuple[Call, int]:
    """The layer, and the bytes of one expert."""
    stacks = [
        {spec.name.removeprefix("a."): random_tensor(spec) for spec in weight_format.specs("a.weight", shape, DTYPE)}
        for shape in ((EXPERTS, 2 * intermediate, hidden), (EXPERTS, hidden, intermediate))
    ]
    linears = [
        [
            weight_format.linear({k: t[i] if len(t) == EXPERTS else t for k, t in stack.items()}, DTYPE)
            for i in range(EXPERTS)
        ]
        for stack in stacks
    ]
    fused = weight_format.fused_experts(stacks[0], stacks[1], DTYPE)
    size = sum(tensor.nbytes for stack in stacks for tensor in stack.values()) // EXPERTS
    return Experts(linears[0], linears[1], fused), size


def measure(
    layers: dict[str, Call], tokens: int, hidden: int, seconds: float, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """The best time of each in alternation, each call with other tokens and experts."""
    best, chosen = dict.fromkeys(layers, math.inf), torch.empty(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end or not chosen.numel():
        x = torch.randn(tokens, hidden).to(DTYPE)
        chosen, weights = route(torch.randn(tokens, EXPERTS), TOP_K)
        for name, layer in layers.items():
            start = clock()
            layer(x, chosen, weights)
            best[name] = min(best[name], clock() - start)
    experts = len(set(chosen.flatten().tolist()))
    return [{"format": name, "tokens": tokens, "experts": experts, "seconds": best[name]} for name in layers]


@click.command(help=__doc__)
@click.option("--hidden", default=4096, show_default=True)
@click.option("--intermediate", default=14336, show_default=True)
@click.option("--tokens", default="1,8,16,128,512", show_default=True, help="Numbers of tokens, with commas between.")
@click.option("--seconds", default=10.0, show_default=True, help="For each number of tokens.")
@click.option("--formats", default=",".join(FORMATS), show_default=True)
@click.option("--cpu-time", is_flag=True, help="One thread and its CPU time, for a machine that is not idle.")
@click.option("--json", "as_json", is_flag=True)
@torch.inference_mode()
def main(
    hidden: int, intermediate: int, tokens: str, seconds: float, formats: str, cpu_time: bool, as_json: bool
) -> None:
    if cpu_time:
        torch.set_num_threads(1)
    clock = time.thread_time if cpu_time else time.perf_counter
    made = {name: random_experts(get_format(FORMATS[name]), hidden, intermediate) for name in formats.split(",")}
    layers = {name: layer for name, (layer, _) in made.items()}
    results = []
    for count in map(int, tokens.split(",")):
        for result in measure(layers, count, hidden, seconds, clock):
            size = made[result["format"]][1] * result["experts"]
            result["weights_gb_s"] = size / result["seconds"] / 1e9
            result["gmac_s"] = 3 * hidden * intermediate * TOP_K * count / result["seconds"] / 1e9
            results.append(result)
            click.echo(
                f"{count:5} tokens, {result['experts']} experts  {result['format']:15}"
                f" {1e3 * result['seconds']:9.2f} ms {result['weights_gb_s']:6.1f} GB/s of weights"
                f" {result['gmac_s']:7.1f} G products/s",
                err=as_json,
            )
    if as_json:
        click.echo(json.dumps({"path": cpu_path(), "threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
