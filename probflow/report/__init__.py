"""Plots, tables and documents from the rows of a study; nothing is computed anew."""

from __future__ import annotations

from .document import (
    check_writable,
    footer_text,
    order_dict,
    results_text,
    row_dict,
    write_report,
)
from .page import save_figure
from .pictures import density_plot, image_grid
from .rates import (
    Panel,
    draw_local_orders,
    draw_rates,
    rate_panels,
    rate_plot,
    work_precision,
)
from .style import OKABE_ITO, Mark, figure_params, solver_marks
from .tables import (
    CurveKey,
    Table,
    curve_table,
    curve_tables,
    group_curves,
    order_text,
    summary_table,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
    verdict_text,
)

__all__ = [
    "OKABE_ITO",
    "CurveKey",
    "Mark",
    "Panel",
    "Table",
    "check_writable",
    "curve_table",
    "curve_tables",
    "density_plot",
    "draw_local_orders",
    "draw_rates",
    "figure_params",
    "footer_text",
    "group_curves",
    "image_grid",
    "order_dict",
    "order_text",
    "rate_panels",
    "rate_plot",
    "results_text",
    "row_dict",
    "save_figure",
    "solver_marks",
    "summary_table",
    "to_csv",
    "to_json",
    "to_latex",
    "to_markdown",
    "verdict_text",
    "work_precision",
    "write_report",
]
