"""`mixtral status`: is the server ready, what does it serve, how busy is it."""

import json
from typing import Any

import click

from mixtral_client.commands.options import Connection, connection_options
from mixtral_client.status import ServerStatus


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: url, ready, manifest, limits, stats.")
@connection_options
@click.pass_context
def status(ctx: click.Context, as_json: bool, connection: Connection) -> None:
    """Show whether the server is ready, its model, precision and limits, and how busy it is.

    Exit code 0 if it is ready, 1 if not or if it cannot be reached.

    \b
    Example:
      mixtral status --url gpu-host:8001 --json
    """
    with connection.open() as client:
        server = client.status()
    click.echo(json.dumps(server.to_json(), ensure_ascii=False) if as_json else describe(server))
    if not server.ready:
        ctx.exit(1)


def describe(server: ServerStatus) -> str:
    """The status as aligned lines. Facts that the server did not give are left out."""
    rows = [("server", f"{server.url} is {'ready' if server.ready else 'not ready'}")]
    rows += [("model", _model(server.manifest)), ("runtime", _runtime(server.manifest))]
    rows += [("limits", _limits(server.limits)), ("now", _now(server.stats)), ("so far", _so_far(server.stats))]
    rows.append(("memory", _memory(server.stats)))
    return "\n".join(f"{name:<8} {text}" for name, text in rows if text)


def _facts(values: dict[str, Any], *templates: tuple[str, str]) -> str:
    """Joins "{value} layers" for each (key, template) whose key has a value."""
    return ", ".join(template.format(values[key]) for key, template in templates if values.get(key) is not None)


def _model(manifest: dict[str, Any]) -> str:
    return _facts(
        manifest.get("model") or {},
        ("architecture", "{}"),
        ("num_hidden_layers", "{} layers"),
        ("num_experts", "{} experts"),
        ("hidden_size", "hidden size {}"),
        ("vocab_size", "vocabulary {}"),
    )


def _runtime(manifest: dict[str, Any]) -> str:
    return _facts(
        manifest,
        ("runtime", "{}"),
        ("gpu", "{}"),
        ("precision", "precision {}"),
        ("dtype", "activations {}"),
        ("kv_cache_dtype", "KV cache {}"),
    )


def _limits(limits: dict[str, Any]) -> str:
    return _facts(
        limits,
        ("max_batch_size", "{} sequences at once"),
        ("max_input_len", "prompt {} tokens"),
        ("max_seq_len", "prompt and output {} tokens"),
        ("max_queue_size", "{} waiting"),
        ("max_queued_tokens", "with {} prompt tokens"),
    )


def _now(stats: dict[str, Any]) -> str:
    text = _facts(stats, ("active", "{} running"), ("queued", "{} waiting"))
    total, free = stats.get("kv_blocks_total"), stats.get("kv_blocks_free")
    if total and free is not None:
        text += f", KV cache {100 * (total - free) / total:.0f} % used"
    return text


def _memory(stats: dict[str, Any]) -> str:
    """Of the engine's process."""
    sizes = {name: f"{size / 1e9:.2f} GB" for name, size in (stats.get("memory") or {}).items()}
    return _facts(sizes, ("anonymous", "{} its own"), ("mapped", "{} of mapped files"), ("peak", "{} at most so far"))


def _so_far(stats: dict[str, Any]) -> str:
    text = _facts(stats, ("prompt_tokens", "{} prompt tokens"), ("output_tokens", "{} output tokens"))
    reused, missed = stats.get("prefix_blocks_reused") or 0, stats.get("prefix_blocks_missed") or 0
    if reused + missed:
        text += f", {100 * reused / (reused + missed):.0f} % of the prompt blocks from the cache"
    if preemptions := stats.get("preemptions"):
        text += f", {preemptions} preemptions"
    finished = ", ".join(f"{reason} {count}" for reason, count in (stats.get("finished") or {}).items())
    return f"{text}; finished: {finished}" if finished else text
