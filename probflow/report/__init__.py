"""Plots, tables and documents from the rows of a study; nothing is computed anew."""

from __future__ import annotations

from ..studies.rows import CurveKey
from .captions import rate_caption, sentences, settings_text, window_sentence
from .document import (
    Shown,
    footer_text,
    order_dict,
    results_text,
    row_dict,
    write_report,
)
from .files import check_writable
from .latex import latex_figure, to_latex
from .page import save_figure
from .pictures import density_plot, image_grid
from .plots import KINDS, plot_on, plot_study
from .precision import draw_times, work_precision
from .rates import (
    Panel,
    draw_local_orders,
    draw_rates,
    rate_panels,
    rate_plot,
)
from .scenes import picture_caption, picture_name, picture_plot, plane_plot, trajectory_plot
from .style import OKABE_ITO, Mark, Marks, figure_params, solver_marks
from .tables import (
    Table,
    curve_table,
    curve_tables,
    group_curves,
    numbered,
    order_text,
    place_text,
    summary_table,
    summary_tables,
    to_csv,
    to_json,
    to_markdown,
    verdict_text,
)
from .venues import VENUES, Venue, page_width

__all__ = [
    "KINDS",
    "OKABE_ITO",
    "VENUES",
    "CurveKey",
    "Mark",
    "Marks",
    "Panel",
    "Shown",
    "Table",
    "Venue",
    "check_writable",
    "curve_table",
    "curve_tables",
    "density_plot",
    "draw_local_orders",
    "draw_rates",
    "draw_times",
    "figure_params",
    "footer_text",
    "group_curves",
    "image_grid",
    "latex_figure",
    "numbered",
    "order_dict",
    "order_text",
    "page_width",
    "picture_caption",
    "picture_name",
    "picture_plot",
    "place_text",
    "plane_plot",
    "plot_on",
    "plot_study",
    "rate_caption",
    "rate_panels",
    "rate_plot",
    "results_text",
    "row_dict",
    "save_figure",
    "sentences",
    "settings_text",
    "solver_marks",
    "summary_table",
    "summary_tables",
    "to_csv",
    "to_json",
    "to_latex",
    "to_markdown",
    "trajectory_plot",
    "verdict_text",
    "window_sentence",
    "work_precision",
    "write_report",
]
