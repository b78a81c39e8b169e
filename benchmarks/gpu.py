"""The PyTorch engine on a GPU: Mixtral-8x7B's shape with random weights, beside what the card allows and two peers.

Every precision through the engine seam, at batch 1 to 1,024: time to first token, time per token, tokens/s, the bytes
that a step must read and their share of the measured copy bandwidth; the kernels by themselves; decode attention alone;
int8 in plain PyTorch, compiled; and 16-bit weights. Results are written after each part; a part that fails is named and
the rest goes on. `--miniature` runs every line on a CPU in seconds.

Example: make gpu-check GPU_FLAGS="--precision int8 --part kernels"
"""

import argparse
import gc
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from gpu_bars import bars, bars_text
from gpu_figures import decode_bytes, measured_experts, prompt_flop
from gpu_kernels import measure_attention, measure_between, measure_matrices
from gpu_loads import random_prompts, run_load
from gpu_machine import describe_gpu
from gpu_model import RandomCheckpoint, config_of, random_model
from gpu_peer import measure_peer
from gpu_record import OutOfTime, Record
from gpu_sizes import PRECISIONS, Load, Sizes, sizes, supports_fp8_products
from gpu_steps import measure_steps
from gpu_timing import copy_bandwidth, matrix_flops, synchronize
from machine import slug

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.formats.fp8 import E4M3
from mixtral_runtime.plan import blocks_for, kv_bytes_per_token
from mixtral_runtime.pytorch.engine import PyTorchEngine
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE, cache_dtype
from mixtral_runtime.pytorch.model import MixtralModel

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("loads", "kernels", "steps", "attention", "peer")
UNITS = ("ceilings", "attention", "int8", "fp8", "awq", "peer", "16bit")  # in the order of importance
KV_SHARE = 0.8  # of the memory beside the weights
WARM_UP_TOKENS = 16
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # whose experts are counted
# A cautious guess of a load's time, so that none is begun that cannot end: prompt tokens a second, and a decode step.
PROMPT_TOKENS_PER_S, STEP_S = 15_000, 0.035


class Benchmark:
    def __init__(self, record: Record, device: torch.device, measured: Sizes, parts: tuple[str, ...]) -> None:
        self._record = record
        self._device = device
        self._sizes = measured
        self._parts = parts
        self._rng = random.Random(0)

    def run(self, units: Sequence[str]) -> list[str]:
        """units: of UNITS. Those that are left when the device no longer answers, because a kernel wrote where it must
        not: only another process can go on."""
        for i, unit in enumerate(units):
            if unit == "ceilings":
                with self._record.part("ceilings"):
                    self._ceilings()
                self._release()
            elif unit == "attention":
                self._attention()
            elif unit == "peer":
                with self._record.part("peer: plain PyTorch, int8, compiled"):
                    self._peer()
                self._release()
            else:
                self._precision(unit)
            if not self._answers():
                return list(units[i + 1 :])
        return []

    def _answers(self) -> bool:
        try:
            synchronize(self._device)
        except RuntimeError as error:
            self._record.say(f"the device is lost to this process: {error}")
            return False
        return True

    def _ceilings(self) -> None:
        found: dict[str, float] = {}
        self._record.data["ceilings"] = found
        found["copy_bytes_per_s"] = copy_bandwidth(self._device, self._sizes.copy_bytes)
        found["bf16_flops"] = matrix_flops(self._device, torch.bfloat16, self._sizes.matrix)
        if supports_fp8_products(self._device):
            found["fp8_flops"] = matrix_flops(self._device, E4M3, self._sizes.matrix)
        self._record.say(", ".join(f"{name} {value:.3g}" for name, value in found.items()))

    def _precision(self, precision: str) -> None:
        until = time.monotonic() + min(self._sizes.budgets_s[precision], self._record.left_s)
        models: list[MixtralModel] = []  # none where the part fails
        with self._record.part(f"{precision}: weights"):
            self._record.need(10)
            models.append(random_model(config_of(self._sizes.shape, precision), self._device))
            synchronize(self._device)
        while models:
            self._measure(precision, models.pop(), until)
        self._release()

    def _measure(self, precision: str, model: MixtralModel, until: float) -> None:
        with self._record.part(f"{precision}: experts that tokens choose"):
            found = {str(batch): met for batch, met in measured_experts(model, BATCHES).items()}
            self._record.data.setdefault("experts_met", {})[precision] = found
        if "loads" in self._parts:
            with self._record.part(f"{precision}: engine"):
                self._loads(precision, model, until)
        if "steps" in self._parts:
            with self._record.part(f"{precision}: steps alone"):
                for step in measure_steps(model, self._sizes.steps, self._sizes.for_s):
                    self._add_step("steps", precision, model, step.batch, step.context, asdict(step))
        if "kernels" in self._parts:
            for name, kernels in (("matrices", measure_matrices), ("steps between them", measure_between)):
                with self._record.part(f"{precision}: {name} alone"):
                    self._record.need(5)
                    for figures in kernels(model, self._sizes.matrix_tokens, self._sizes.for_s):
                        self._record.add("kernels", {"precision": precision, **asdict(figures)})

    def _loads(self, precision: str, model: MixtralModel, until: float) -> None:
        wanted = self._sizes.loads[precision]
        tokens = self._kv_tokens(model, wanted)
        fitting = [load for load in wanted if _kv_need(load) <= tokens]
        longest = min(model.config.max_position_embeddings, tokens)  # as a served engine's
        limits = EngineLimits(
            max_batch_size=max(load.batch for load in fitting),
            max_input_len=longest - 1,
            max_seq_len=longest,
            max_num_tokens=self._sizes.max_num_tokens,
            max_queue_size=4096,
        )
        engine = PyTorchEngine(model, limits, tokens)
        try:
            with self._record.part(f"{precision}: prompts alone"):
                self._prefill(precision, engine, model)
            for load in wanted:
                name = f"{precision}: {load.input} in, {load.output} out, batch {load.batch}"
                if load not in fitting:
                    self._record.leave_out(name, f"{_kv_need(load)} tokens of KV cache, {tokens} fit")
                    continue
                with self._record.part(name):
                    guess = load.batch * load.input / PROMPT_TOKENS_PER_S + load.output * STEP_S
                    if (left := min(until - time.monotonic(), self._record.left_s)) < guess:
                        raise OutOfTime(
                            f"{left:.0f} s were left of this precision's time, this takes about {guess:.0f}"
                        )
                    self._load(precision, engine, model, load, time.monotonic() + self._record.left_s)
        finally:
            engine.close()

    def _prefill(self, precision: str, engine: PyTorchEngine, model: MixtralModel) -> None:
        for tokens in self._sizes.prefill:
            seconds = []
            for round_ in range(self._sizes.rounds + 1):  # the first compiles
                (prompt,) = random_prompts(1, tokens, model.config.vocab_size, self._rng)
                figures = run_load(engine, [prompt], 1, time.monotonic() + self._record.left_s)
                if round_:
                    seconds.append(figures.ttft_s_median)
            flop = prompt_flop(model.config, tokens)
            self._record.add(
                "prefill", {"precision": precision, "tokens": tokens, "ttft_s": sorted(seconds), "flop": flop}
            )

    def _load(self, precision: str, engine: PyTorchEngine, model: MixtralModel, load: Load, deadline: float) -> None:
        vocab = model.config.vocab_size
        # A short run of the same batch and a full step of the prompts compile what the load will meet.
        run_load(engine, random_prompts(load.batch, WARM_UP_TOKENS, vocab, self._rng), 3, deadline)
        filling = min(load.batch, -(-self._sizes.max_num_tokens // load.input) + 1)
        run_load(engine, random_prompts(filling, load.input, vocab, self._rng), 2, deadline)
        for _ in range(self._sizes.rounds if load.batch == 1 else 1):
            prompts = random_prompts(load.batch, load.input, vocab, self._rng)
            figures = run_load(engine, prompts, load.output, deadline)
            entry = {"batch": load.batch, "input": load.input, "output": load.output, **asdict(figures)}
            context = figures.step_context or load.tokens
            self._add_step("loads", precision, model, load.batch, context, entry)
        self._record.say(
            f"{precision}: {load.input} in, {load.output} out, batch {load.batch}: "
            f"TTFT {1e3 * figures.ttft_s_median:.1f} ms, TPOT {1e3 * figures.tpot_s_median:.2f} ms, "
            f"{figures.tokens_per_s:,.0f} tokens/s"
        )

    def _add_step(
        self, kind: str, precision: str, model: MixtralModel, batch: int, context: float, entry: dict[str, object]
    ) -> None:
        met = self._record.data.get("experts_met", {}).get(precision, {}).get(str(batch))
        read = decode_bytes(model.config, batch, context, met)
        self._record.add(kind, {"precision": precision, **entry, "step_bytes": read})

    def _attention(self) -> None:
        for kv_cache in ("16bit", "fp8"):
            with self._record.part(f"attention, {kv_cache} KV cache"):
                config = config_of(self._sizes.shape, "int8", kv_cache)
                begun = time.monotonic()
                cases = self._sizes.attention
                memory = self._free_memory() // 2
                for figures in measure_attention(config, self._device, cases, self._sizes.for_s, memory):
                    self._record.add("attention", asdict(figures))
                    if time.monotonic() - begun > self._sizes.budgets_s["attention"]:
                        raise OutOfTime("attention's time was up")
            self._release()

    def _peer(self) -> None:
        self._record.need(min(45, self._sizes.budgets_s["peer"]))
        checkpoint = RandomCheckpoint(config_of(self._sizes.shape, "int8"), self._device)
        context, positions = self._sizes.peer
        compiled = self._device.type == "cuda"
        figures = measure_peer(checkpoint, context, positions, compiled=compiled)
        read = decode_bytes(checkpoint.config, 1, positions)
        entry = {"peer": "plain PyTorch", "precision": "int8", "batch": 1, "context": context, "step_bytes": read}
        self._record.add("peers", entry | asdict(figures))

    def _kv_tokens(self, model: MixtralModel, loads: tuple[Load, ...]) -> int:
        """As many as the largest load needs, or as there is room for."""
        per_token = kv_bytes_per_token(model.config, cache_dtype(model.config, model.dtype).itemsize)
        room = int(self._free_memory() * KV_SHARE) // per_token // BLOCK_SIZE * BLOCK_SIZE
        return min(room, max(map(_kv_need, loads)))

    def _free_memory(self) -> int:
        """Bytes that nothing holds, PyTorch's own reserve included."""
        self._release()
        return int(torch.cuda.mem_get_info(self._device)[0]) if self._device.type == "cuda" else 1 << 28

    def _release(self) -> None:
        gc.collect()
        if self._device.type == "cuda" and self._answers():
            torch.cuda.empty_cache()


def _kv_need(load: Load) -> int:
    """Tokens of KV cache, and a block for each sequence that the scheduler keeps free."""
    return load.batch * (blocks_for(load.tokens) + 1) * BLOCK_SIZE


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=400.0, help="All parts together end by then, about.")
    parser.add_argument("--results", type=Path, help="Folder of gpu.json; the card's own under benchmarks/results/.")
    parser.add_argument("--miniature", action="store_true", help="A tiny model on the CPU; no file without --results.")
    parser.add_argument("--go-on", type=Path, help=argparse.SUPPRESS)  # the file of a process that lost the device
    parser.add_argument("--units", nargs="+", choices=UNITS, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="The result file's content on stdout, too.")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    asked = _arguments(arguments)
    if not asked.miniature and not torch.cuda.is_available():
        print("error: PyTorch sees no CUDA GPU here; --miniature runs on the CPU", file=sys.stderr)
        return 1
    device = torch.device("cpu" if asked.miniature else "cuda")
    machine = describe_gpu(device)
    folder = asked.results or (None if asked.miniature else RESULTS / slug(str(machine["processor"])))
    head = {"machine": machine, "settings": {"miniature": asked.miniature, "seconds": asked.seconds}}
    units = [unit for unit in UNITS if unit in asked.precision or unit in (*asked.part, "ceilings")]
    if asked.go_on:
        head = json.loads(asked.go_on.read_text(encoding="utf-8"))
        units = asked.units
    path = None if folder is None else folder / "gpu.json"
    record = Record(path, head, asked.seconds)
    left = Benchmark(record, device, sizes(miniature=asked.miniature), tuple(asked.part)).run(units)
    if left and path is not None:
        rest = ["--go-on", str(path), "--units", *left, "--part", *asked.part, "--results", str(folder)]
        rest += [flag for flag in ("--miniature", "--json") if getattr(asked, flag[2:])]
        os.execv(sys.executable, [sys.executable, __file__, *rest, "--seconds", f"{max(1.0, record.left_s):.0f}"])
    record.data["bars"] = [asdict(bar) for bar in bars(record.data)]
    record.finish()
    _draw(folder, record)
    print(json.dumps(record.data) if asked.json else bars_text(record.data))
    return 1 if record.failed else 0


def _draw(folder: Path | None, record: Record) -> None:
    """The picture needs matplotlib and the client's package; without them it is drawn later from the file."""
    if folder is None:
        return
    try:
        from gpu_picture import draw

        draw(record.data, folder)
    except ImportError as error:
        record.say(f"no picture ({error}); elsewhere: python benchmarks/gpu_picture.py {folder / 'gpu.json'}")


if __name__ == "__main__":
    sys.exit(main())
