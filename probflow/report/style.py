"""How figures look: parameters, the palette and the marks of each solver.

The functions called ``*_params`` are pure: each returns a dictionary of matplotlib ``rcParams``
for :func:`matplotlib.rc_context`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib

#: The palette of Okabe and Ito, told apart under every common colour-vision deficiency.
OKABE_ITO: dict[str, str] = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "bluish green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "reddish purple": "#CC79A7",
}

#: Neutral tones for what is not data: footers, reference triangles, claims, floors.
GREY = "#555555"
FLOOR = "#C4C4C4"

# Yellow is left out (too light for thin lines on white); neighbours in this order differ in
# lightness, too, so that the first few curves stay apart in a grey print.
_COLOURS = ("blue", "orange", "black", "sky blue", "vermillion", "reddish purple", "bluish green")
# Markers that can be filled or hollow, because hollow means "outside the fit window".
# At this size a filled plus is hardly told from a diamond, nor a hexagon from a circle: last.
_MARKERS = ("o", "s", "^", "D", "v", "<", ">", "*", "p", "X", "h", "P")
_LINES: tuple[str | tuple[float, tuple[float, ...]], ...] = (
    "-",
    (0.0, (5.0, 1.5)),
    (0.0, (1.0, 1.2)),
    (0.0, (5.0, 1.5, 1.0, 1.5)),
    (0.0, (8.0, 1.5, 2.0, 1.5)),
)


class Mark(NamedTuple):
    """How one solver is drawn."""

    colour: str
    marker: str
    linestyle: str | tuple[float, tuple[float, ...]]


#: Looks by curve label or solver name.
Marks = Mapping[str, Mark]


def solver_marks(names: Iterable[str]) -> dict[str, Mark]:
    """Give every solver a colour, a marker and a line style.

    The i-th distinct name always gets the i-th mark, so a list that only grows at its end never
    changes the look of a solver. The first twelve have distinct markers, and colour, marker
    and line style together repeat only after 420 names.

    Parameters
    ----------
    names
        Names in the order wanted; repetitions are ignored.

    Returns
    -------
    dict
        Name to :class:`Mark`, in the order of first appearance.

    Examples
    --------
    >>> solver_marks(["heun", "ddim", "heun"])["ddim"].marker
    's'
    """
    marks: dict[str, Mark] = {}
    for name in names:
        if name not in marks:
            i = len(marks)
            marks[name] = Mark(
                OKABE_ITO[_COLOURS[i % len(_COLOURS)]],
                _MARKERS[i % len(_MARKERS)],
                _LINES[i % len(_LINES)],
            )
    return marks


def all_marks(names: Iterable[str], marks: Marks | None) -> dict[str, Mark]:
    """Complete given marks: the look of ``"heun, grid"`` is that of ``"heun"`` if only that is."""
    marks = {} if marks is None else marks
    own = solver_marks([*marks, *names])
    return {name: marks.get(name, marks.get(name.split(", ")[0], own[name])) for name in own}


def font_params(size: float = 7.0) -> dict[str, Any]:
    """Fonts: DejaVu Sans comes with matplotlib, so figures are the same on every machine."""
    return {
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
        "mathtext.fontset": "dejavusans",
        "text.usetex": False,
        "font.size": size,
        "axes.labelsize": size,
        "axes.titlesize": size,
        "figure.titlesize": size + 1.0,
        "xtick.labelsize": size - 0.5,
        "ytick.labelsize": size - 0.5,
        "legend.fontsize": size - 0.5,
    }


def line_params() -> dict[str, Any]:
    """Lines, markers and bars that stay legible at column width."""
    return {
        "lines.linewidth": 0.9,
        "lines.markersize": 3.6,
        "lines.markeredgewidth": 0.8,
        "errorbar.capsize": 1.6,
        "patch.linewidth": 0.6,
        "hatch.linewidth": 0.4,
    }


def axes_params() -> dict[str, Any]:
    """Thin frames, a faint grid behind the data, no boxes around legends."""
    return {
        "axes.linewidth": 0.6,
        "axes.grid": True,
        "axes.grid.which": "major",
        "axes.axisbelow": True,
        "axes.facecolor": "white",
        "axes.edgecolor": "black",
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "grid.color": "#E6E6E6",
        "grid.linewidth": 0.4,
        "grid.linestyle": "-",
        "xtick.direction": "out",
        "ytick.direction": "out",
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.minor.width": 0.4,
        "ytick.minor.width": 0.4,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.minor.size": 1.5,
        "ytick.minor.size": 1.5,
        "axes.labelpad": 3.0,
        "axes.titlepad": 4.0,
        "legend.frameon": False,
        "legend.handlelength": 2.6,
        "legend.handletextpad": 0.5,
        "legend.columnspacing": 1.4,
        "legend.labelspacing": 0.3,
        "legend.borderpad": 0.2,
        "legend.numpoints": 1,
    }


def output_params() -> dict[str, Any]:
    """How files are written: editable text in PDF and SVG, and no randomness in their bytes."""
    return {
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
        "svg.fonttype": "none",
        "svg.hashsalt": "probflow",
        "savefig.bbox": None,
        "savefig.transparent": False,
    }


def figure_params(*, font_size: float = 7.0) -> dict[str, Any]:
    """All of the above in one dictionary, for :func:`matplotlib.rc_context`.

    Parameters
    ----------
    font_size
        In points.

    Returns
    -------
    dict
        rcParams.
    """
    return {**font_params(font_size), **line_params(), **axes_params(), **output_params()}


def style_context(*, font_size: float = 7.0) -> AbstractContextManager[None]:
    """Context in which figures are made and saved; the settings before it come back after."""
    params: Any = figure_params(font_size=font_size)
    return matplotlib.rc_context(params)
