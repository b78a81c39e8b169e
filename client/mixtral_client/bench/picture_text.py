"""The words of a picture: its title and the caption that says where the figures come from."""

from collections.abc import Sequence

from mixtral_client.bench.picture_data import Run, load_text, workload_text
from mixtral_client.bench.result import BenchResult, Workload


def title(what: str, runs: Sequence[Run]) -> str:
    """With "(partial)" when any of the runs was cut off."""
    presets = dict.fromkeys(preset for run in runs if (preset := run.result.command.get("preset")))
    named = f"{what}, preset {' and '.join(presets)}" if presets else what
    return f"{named} (partial run)" if any(run.result.partial for run in runs) else named


def caption(runs: Sequence[Run]) -> str:
    """A line for what was asked, and one for each run's hardware, engine and versions."""
    workloads = dict.fromkeys(_prompts(point.workload) for run in runs for point in run.result.points)
    lines = [f"Prompts: {'; '.join(workloads)}."] if 0 < len(workloads) <= 3 else []
    lines += [_where(run) for run in runs]
    errors = [text for run in runs if (text := _errors(run))]
    return "\n".join([*lines, *errors])


def _prompts(workload: Workload) -> str:
    if workload.kind == "dolly-like":
        return "lengths drawn to be like Dolly's"
    return workload_text(workload) + (" (tokens)" if workload.kind == "synthetic" else "")


def _where(run: Run) -> str:
    result = run.result
    manifest = result.server.manifest
    engine = " ".join(str(manifest[key]) for key in ("runtime", "precision") if manifest.get(key))
    model = manifest.get("model") or {}
    size = f", {model['num_hidden_layers']} layers of {model['hidden_size']}" if "hidden_size" in model else ""
    batch = result.server.limits.get("max_batch_size")
    parts = [
        _machine(result),
        f"{engine or 'unknown'} engine{size}" + (f", batch up to {batch}" if batch else ""),
        _versions(result),
        result.started_at[:10],
    ]
    cut = " Cut off before its end." if result.partial else ""
    return f"{run.name}: " * bool(run.name) + "; ".join(filter(None, parts)) + "." + cut


def _machine(result: BenchResult) -> str:
    """The result knows the load generator's processor, which is the server's too when that is at a loopback address."""
    hardware = result.hardware
    generator = f"{hardware.cpu}, {hardware.cores} cores"
    host = result.server.url.rpartition(":")[0].strip("[]")
    if host == "localhost" or host == "::1" or host.startswith("127."):
        return f"GPU {hardware.gpu}, {generator}" if hardware.gpu else generator
    server = f"GPU {hardware.gpu}" if hardware.gpu else "server on another machine"
    return f"{server}; load generator on {generator}"


def _versions(result: BenchResult) -> str:
    engine = result.server.manifest.get("versions")
    versions = (engine if isinstance(engine, dict) else {}) | result.versions
    shown = {
        name: versions[name] for name in ("mixtral-triton", "torch", "tensorrt_llm", "tritonclient") if name in versions
    }
    return ", ".join(f"{name} {number}" for name, number in shown.items())


def _errors(run: Run) -> str:
    failed = [
        f"{load_text(point.load)}: {', '.join(f'{count} {kind}' for kind, count in point.summary.errors.items())}"
        for point in run.result.points
        if point.summary.errors
    ]
    return f"{run.name}: " * bool(run.name) + "Failed, and not in the latencies: " + "; ".join(failed) if failed else ""
