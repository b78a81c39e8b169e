"""How every picture looks: one palette, one font size, a caption that says where the figures come from, PNG and SVG.

matplotlib is an extra, so it is imported here when the first picture is drawn, and nowhere else.
"""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

from mixtral_client.errors import MixtralClientError

# Okabe and Ito's palette without its yellow, which is too light for lines: distinct for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
GREY = "#777777"

_SETTINGS: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.grid.which": "major",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 2.8,
    "legend.borderaxespad": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",  # text stays text: it can be searched, and tests can read it
    "svg.hashsalt": "mixtral",  # the same figures give the same file
}
_WIDE = 30
_LABELS_BETWEEN = 1000
_CAPTION_SIZE = 7
_CAPTION_LINE_INCH = 0.135
_TITLE_INCH = 0.34
_LEGEND_ROW_INCH = 0.19


class PicturesUnavailable(MixtralClientError):
    """matplotlib is not installed."""


def plotting() -> Any:
    """matplotlib.pyplot, drawing into files. Raises PicturesUnavailable."""
    try:
        import matplotlib
    except ImportError:
        raise PicturesUnavailable(
            "pictures need matplotlib, which the extra `bench` installs: pip install 'mixtral-triton[bench]'"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(_SETTINGS)
    return plt


def new_figure(title: str, *, columns: int = 1, width: float = 8.6, height: float = 4.0) -> Any:
    """(figure, panels side by side as a list). Sizes in inches, of the panels with their labels; `save` adds room for
    title, legend and caption."""
    figure, axes = plotting().subplots(1, columns, figsize=(width, height), squeeze=False)
    figure.suptitle(title, fontsize=11)
    return figure, list(axes.flat)


def log_if_wide(panel: Any, axis: Literal["x", "y"], values: Sequence[float]) -> bool:
    """Makes an axis logarithmic when its values span more than a factor of 30; whether it did."""
    if not values or min(values) <= 0 or max(values) / min(values) <= _WIDE:
        return False
    panel.set(**{f"{axis}scale": "log"})
    plain = plotting().FuncFormatter(lambda value, _: f"{value:g}")
    axis_of = panel.xaxis if axis == "x" else panel.yaxis
    axis_of.set_major_formatter(plain)
    # Where powers of ten are too few to read values between them, 2 and 5 are labelled too, and nothing else.
    narrow = max(values) / min(values) < _LABELS_BETWEEN
    axis_of.set_minor_locator(plotting().LogLocator(subs=(2.0, 5.0) if narrow else range(2, 10)))
    axis_of.set_minor_formatter(plain if narrow else plotting().NullFormatter())
    return True


def zero_based(panel: Any, axis: Literal["x", "y"], values: Sequence[float]) -> None:
    """Makes an axis begin at zero and end a little beyond the largest value."""
    top = max(values, default=0.0)
    panel.set(**{f"{axis}lim": (0, top * 1.08 if top > 0 else 1)})


def save(figure: Any, caption: str, folder: Path, name: str, *, legend_of: Sequence[Any] = ()) -> list[Path]:
    """Writes folder/name.png and folder/name.svg and closes the figure. The caption goes below the panels; one legend
    for all panels of `legend_of` goes above them."""
    width, height = figure.get_size_inches()
    entries: dict[str, Any] = {}
    for panel in legend_of:
        handles, labels = panel.get_legend_handles_labels()
        entries |= {label: handle for label, handle in zip(labels, handles, strict=True) if label not in entries}
    longest = max(map(len, entries), default=1)
    columns = max(1, min(len(entries), int(width / (0.5 + 0.058 * longest))))
    above = _TITLE_INCH + -(-len(entries) // columns) * _LEGEND_ROW_INCH
    lines = [line for part in caption.split("\n") for line in wrap(part, int(width * 19))]
    below = (len(lines) + 1.2) * _CAPTION_LINE_INCH
    whole = height + above + below
    figure.set_size_inches(width, whole)
    figure._suptitle.set_in_layout(False)  # its room is in `above`
    figure.tight_layout(rect=(0, below / whole, 1, 1 - above / whole))
    figure._suptitle.set_y(1 - 0.08 / whole)
    figure._suptitle.set_verticalalignment("top")
    if entries:
        place = (0.5, 1 - (_TITLE_INCH - 0.06) / whole)
        figure.legend(entries.values(), entries.keys(), loc="upper center", bbox_to_anchor=place, ncols=columns)
    figure.text(
        0.1 / width,
        0.08 / whole,
        "\n".join(lines),
        fontsize=_CAPTION_SIZE,
        color="#444444",
        va="bottom",
        linespacing=1.35,
    )
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    figure.savefig(paths[0], dpi=130)
    figure.savefig(paths[1], metadata={"Date": None})
    plotting().close(figure)
    return paths
