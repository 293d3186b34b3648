"""How pictures look: one palette, quiet axes, readable on light and on dark pages."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec

from volution._support.extras import needs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "GREEN", "INK", "ORANGE", "QUIET", "figure", "plain", "styled", "svg"]

_P = ParamSpec("_P")

# Okabe and Ito's palette, told apart with every kind of colour vision.
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
INK, QUIET = "#1b1f24", "#6a737d"

# What the two inks become where the reader's system is dark; the blue is too deep for it.
_DARK = {INK: "#e6edf3", QUIET: "#9198a1", BLUE: "#56b4e9", ORANGE: "#e69f00"}


_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 10.5,
    "text.color": INK,
    "svg.hashsalt": "volution",  # the same figure, the same bytes
    "text.parse_math": False,  # a dollar in the name of a class is a dollar
}


def styled(draw: Callable[_P, bytes]) -> Callable[_P, bytes]:
    """Let a function draw in this style, whatever the user's own settings are."""

    @functools.wraps(draw)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> bytes:
        with needs("analysis"):
            from matplotlib import rc_context, rcParamsDefault
        with rc_context({**rcParamsDefault, **_SETTINGS}):
            return draw(*args, **kwargs)

    return wrapper


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    fig.patch.set_alpha(0)
    return fig


def plain(axes: Axes, *, title: str = "", grid: bool = False) -> Axes:
    """Take away from axes what carries no information, and give them a title on the left."""
    axes.set_facecolor("none")
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=INK, pad=10)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(QUIET)
    axes.tick_params(colors=QUIET, labelcolor=INK, length=0, labelsize=9.5)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    if grid:
        axes.grid(axis="y", color=QUIET, alpha=0.25, linewidth=0.8)
        axes.set_axisbelow(True)
    return axes


def svg(fig: Figure) -> bytes:
    """Return a figure as SVG that follows the reader's choice of light or dark."""
    from matplotlib import rc_context

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        text = _saved(fig)
    if any("missing from font" in str(warning.message) for warning in caught):
        # Letters that our font has not are left to the reader's fonts.
        with warnings.catch_warnings(), rc_context({"svg.fonttype": "none"}):
            warnings.filterwarnings("ignore", message=".*missing from font.*")
            text = _saved(fig)
    else:
        for warning in caught:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in _DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media(prefers-color-scheme:dark){{{rules}}}</style>"
    head, tag, tail = text.partition("<defs>")
    return f"{head}{style}{tag}{tail}".encode()


def _saved(fig: Figure) -> str:
    text = io.StringIO()
    fig.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
