"""A comparison as a table and as a picture."""

from pathlib import Path
from typing import Any

from mixtral_build.compare import Comparison
from mixtral_runtime.errors import InvalidArgument


def table(comparison: Comparison) -> str:
    """What `mixtral-build compare` prints."""
    c = comparison
    lines = [
        f"A: {c.a}",
        f"B: {c.b}",
        f"text: {c.texts} texts, {c.tokens} predicted tokens, windows of {c.context}",
        f"perplexity: A {c.perplexity_a:.4f}, B {c.perplexity_b:.4f}, change {c.perplexity_change_percent:+.3f} %",
        f"mean KL(A || B): {c.mean_kl:.3e} nats per token",
        f"top-1 agreement: {c.top1_agreement:.2%}",
        "",
    ]
    kinds = list(c.layers[0].weight_error)
    lines.append(f"{'':>5}  {'same':>8}  {'output':>9}  weight error")
    lines.append(f"{'layer':>5}  {'experts':>8}  {'error':>9}  " + "  ".join(f"{kind:>15}" for kind in kinds))
    for layer in c.layers:
        weights = "  ".join(f"{layer.weight_error[kind]:>15.2e}" for kind in kinds)
        lines.append(f"{layer.layer:>5}  {layer.routing_agreement:>8.2%}  {layer.output_error:>9.2e}  {weights}")
    return "\n".join(lines)


def load_figure_class() -> Any:
    """matplotlib's Figure. Raises InvalidArgument when matplotlib is missing: before the measuring, not after it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidArgument("--picture needs matplotlib; `pip install matplotlib`") from error
    return Figure


def draw(comparison: Comparison, figure_class: Any, path: Path) -> None:
    """Three panels by layer, as PNG: routing agreement, output error, weight error by linear."""
    layers = [layer.layer for layer in comparison.layers]
    figure = figure_class(figsize=(12, 3.8), layout="constrained")
    routing, output, weight = figure.subplots(1, 3)
    routing.plot(layers, [100 * layer.routing_agreement for layer in comparison.layers], marker="o", markersize=3)
    routing.set_ylabel("tokens with the same experts, %")
    output.plot(layers, [layer.output_error for layer in comparison.layers], marker="o", markersize=3)
    output.set_ylabel("relative error of the hidden states")
    output.set_ylim(bottom=0)
    for kind in comparison.layers[0].weight_error:
        errors = [layer.weight_error[kind] for layer in comparison.layers]
        weight.plot(layers, errors, marker="o", markersize=3, label=kind)
    weight.set_ylabel("relative error of the weights")
    weight.set_ylim(bottom=0)
    weight.legend(fontsize=7)
    for axes in (routing, output, weight):
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(
        f"{Path(comparison.b).name} against {Path(comparison.a).name}: perplexity "
        f"{comparison.perplexity_change_percent:+.3f} %, mean KL {comparison.mean_kl:.2e} nats, "
        f"top-1 agreement {comparison.top1_agreement:.2%}",
        fontsize=10,
    )
    figure.savefig(path, format="png", dpi=130)
