"""The result of a study, and what is made of it: plots, tables, data frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probflow.studies.measure import Settings
from probflow.studies.rows import OrderEstimate, Row, Timing
from probflow.words import check_choice

__all__ = ["Study"]


@dataclass(frozen=True)
class Study:
    """The result of a study: a table of errors and the orders fitted to it.

    Attributes
    ----------
    rows
        One :class:`~probflow.studies.rows.Row` a cell.
    estimates
        One :class:`~probflow.studies.rows.OrderEstimate` a curve.
    settings
        Seed, number of samples, reference.
    timings
        One :class:`~probflow.studies.rows.Timing` a plan, where wall times were asked for.
    provenance
        What the numbers depend on: process, seed, samples, versions of the libraries that measured
        them (:func:`probflow.studies.folder.provenance`); empty where nobody knows.
    """

    rows: tuple[Row, ...]
    estimates: tuple[OrderEstimate, ...]
    settings: Settings
    timings: tuple[Timing, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def orders(self) -> tuple[OrderEstimate, ...]:
        """The fitted orders with their verdicts, a tuple of :class:`OrderEstimate`."""
        return self.estimates

    def plot(
        self,
        path: str | Path | None = None,
        *,
        kind: str = "rates",
        measure: str | None = None,
        ax: Any = None,
        axis: str = "T",
        columns: int = 2,
        venue: str | None = None,
    ) -> Any:
        """Plot one measure, as a figure of its own or on given axes.

        The other measures of the study are not in it: make a figure of each, or give each its
        ``ax``.

        Parameters
        ----------
        path
            Also save the figure there: ``.pdf``, ``.svg`` or ``.png``.
        kind
            ``"rates"`` (error, beside it the local orders), ``"local-orders"``,
            ``"work-precision"`` (error against model calls, beside it against wall time where
            the study has ``timings``) or ``"times"``.
        measure
            Which one; by default the first of the study, however many it has.
        ax
            A matplotlib ``Axes``: only the first panel of the kind, drawn there with its legend
            in the style that is set. Without it, a figure in this library's style.
        axis
            What stands on the x axis of ``"rates"``: ``"T"``, ``"h"`` or ``"nfe"``.
        columns, venue
            Width of the figure: columns of a page that it spans, and whose page
            (:data:`~probflow.report.venues.VENUES`).

        Returns
        -------
        matplotlib.figure.Figure or matplotlib.axes.Axes
            The figure, or ``ax``.

        Raises
        ------
        ValueError
            For an unknown kind, measure, axis, venue or suffix, for ``"times"`` without wall
            times, and for a ``path`` with an ``ax``.
        """
        from probflow.report import plot_on, plot_study, save_figure

        name = measure or self.rows[0].measure
        if ax is not None:
            if path is not None:
                raise ValueError("path: give either path or ax; with ax, save the axes' figure")
            return plot_on(ax, self.rows, self.estimates, self.timings, kind, name, axis)
        suffix = "" if path is None else Path(path).suffix.lstrip(".")
        if path is not None and suffix not in ("pdf", "svg", "png"):
            raise ValueError(f"path: must end in .pdf, .svg or .png, got {path}")
        figure = plot_study(
            *(self.rows, self.estimates, self.timings, kind, name, axis),
            columns=columns,
            venue=venue,
        )
        if path is not None:
            save_figure(figure, Path(path).with_suffix(""), (suffix,))
        return figure

    def table(
        self,
        style: str = "markdown",
        *,
        what: str = "orders",
        columns: int = 2,
        venue: str | None = None,
    ) -> str:
        """The results as text; Markdown and LaTeX say process, seed and versions, too.

        Parameters
        ----------
        style
            ``"markdown"``, ``"latex"`` (``table`` floats for the package ``booktabs``), ``"csv"``
            or ``"json"``.
        what
            ``"orders"``: orders and verdicts; ``"errors"``: a table of errors for each curve.
        columns, venue
            Width of LaTeX tables, as in :meth:`plot`.

        Returns
        -------
        str
            One table, or several one after the other.

        Raises
        ------
        ValueError
            For an unknown style, content or venue.
        """
        from probflow import report

        check_choice("style", style, ("markdown", "latex", "csv", "json"))
        check_choice("what", what, ("orders", "errors"))
        if what == "errors":
            rows = report.numbered(self.rows) if style == "latex" else self.rows
            tables = report.curve_tables(rows, self.estimates)
        elif style == "latex":
            tables = report.summary_tables(self.rows, self.estimates)
        else:
            tables = [report.summary_table(self.rows, self.estimates)]
        note = report.settings_text(self.provenance, self.rows)
        if style == "latex":
            return report.to_latex(*tables, note=note, columns=columns, venue=venue)
        if style == "markdown":
            return report.to_markdown(*tables, note=note)
        return report.to_csv(*tables) if style == "csv" else report.to_json(*tables)

    def to_dataframe(self, what: str = "rows") -> Any:
        """The results as a ``pandas.DataFrame``, one line each (extra ``pandas``).

        Parameters
        ----------
        what
            ``"rows"``: a :class:`~probflow.studies.rows.Row` a line, ``"orders"``: an
            :class:`~probflow.studies.rows.OrderEstimate`, ``"timings"``: a
            :class:`~probflow.studies.rows.Timing`. The columns are the names of their fields.

        Returns
        -------
        pandas.DataFrame
            Of as many lines as there are rows, orders or timings.

        Raises
        ------
        ImportError
            If pandas is not installed.
        ValueError
            For an unknown content.
        """
        contents: dict[str, tuple[type, tuple[Any, ...]]] = {
            "rows": (Row, self.rows),
            "orders": (OrderEstimate, self.estimates),
            "timings": (Timing, self.timings),
        }
        check_choice("what", what, contents)
        try:
            import pandas
        except ImportError:
            raise ImportError(
                "to_dataframe needs pandas: pip install 'probflow-solvers[pandas]'"
            ) from None
        kind, items = contents[what]
        names = [field.name for field in dataclasses.fields(kind)]
        lines = [[getattr(item, name) for name in names] for item in items]
        return pandas.DataFrame(lines, columns=names)
