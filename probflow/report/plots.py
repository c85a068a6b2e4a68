"""The plots of a study by name: whole figures, and single panels on given axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..studies.rows import OrderEstimate, Row, Timing
from ..words import check_choice
from .page import finish_figure, new_figure
from .precision import draw_times, work_precision
from .rates import draw_local_orders, draw_rates, rate_plot
from .style import style_context
from .venues import page_width

__all__ = ["KINDS", "plot_on", "plot_study"]

#: Kinds of plots; the second and the last are single panels.
KINDS = ("rates", "local-orders", "work-precision", "times")


def plot_on(
    ax: Axes,
    rows: Sequence[Row],
    orders: Sequence[OrderEstimate],
    timings: Sequence[Timing],
    kind: str,
    measure: str,
    axis: Any = "T",
) -> Axes:
    """Draw the first panel of a kind, with a legend.

    Parameters
    ----------
    ax
        Where.
    rows, orders, timings
        Those of a study.
    kind, measure, axis
        As those of :meth:`probflow.studies.runner.Study.plot`.

    Returns
    -------
    Axes
        ``ax``.

    Raises
    ------
    TypeError
        If ``ax`` is no matplotlib ``Axes``.
    ValueError
        For an unknown kind, measure or axis, or ``"times"`` without wall times.
    """
    if not isinstance(ax, Axes):
        raise TypeError(f"ax: need a matplotlib Axes, got {type(ax).__name__}")
    ax.legend(handles=_draw(ax, rows, orders, timings, kind, measure, axis))
    return ax


def _draw(
    ax: Axes,
    rows: Sequence[Row],
    orders: Sequence[OrderEstimate],
    timings: Sequence[Timing],
    kind: str,
    measure: str,
    axis: Any,
) -> list[Line2D]:
    """Draw the first panel of a kind; returns legend handles."""
    draw: dict[str, Callable[[], list[Line2D]]] = {
        "rates": lambda: draw_rates(ax, rows, orders, measure=measure, axis=axis),
        "local-orders": lambda: draw_local_orders(ax, rows, orders, measure=measure),
        "work-precision": lambda: draw_rates(ax, rows, measure=measure, axis="nfe", fitted=False),
        "times": lambda: draw_times(ax, rows, timings, measure=measure),
    }
    return draw[_checked(kind)]()


def plot_study(
    rows: Sequence[Row],
    orders: Sequence[OrderEstimate],
    timings: Sequence[Timing],
    kind: str,
    measure: str,
    axis: Any = "T",
    *,
    columns: int = 2,
    venue: str | None = None,
) -> Figure:
    """A figure of one kind; all as :meth:`probflow.studies.runner.Study.plot` has it."""
    size: dict[str, Any] = {"columns": columns, "venue": venue}
    if _checked(kind) == "rates":
        return rate_plot(rows, orders, measure=measure, axis=axis, **size)
    if kind == "work-precision":
        return work_precision(rows, timings, measure=measure, **size)
    with style_context():
        fig, (ax,) = new_figure(page_width(columns, venue), 1, 1)
        handles = _draw(ax, rows, orders, timings, kind, measure, axis)
        finish_figure(fig, panel_height=2.5, legends=[(0.0, 1.0, handles)])
    return fig


def _checked(kind: str) -> str:
    check_choice("kind", kind, KINDS)
    return kind
