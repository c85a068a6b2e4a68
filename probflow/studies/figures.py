"""The report of a study: its figures with their captions, its notes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from probflow.report import (
    Marks,
    Panel,
    Shown,
    footer_text,
    page_width,
    picture_caption,
    picture_name,
    picture_plot,
    place_text,
    rate_caption,
    rate_panels,
    rate_plot,
    sentences,
    settings_text,
    solver_marks,
    window_sentence,
    work_precision,
    write_report,
)
from probflow.solvers import get_solver
from probflow.studies.folder import BUILT_IN, Description
from probflow.studies.result import Study
from probflow.studies.rows import Row
from probflow.studies.shown import Picture

__all__ = ["BUILTIN_NOTES", "builtin_figures", "refusal_notes", "study_figures", "study_report"]

BUILTIN_NOTES = [
    "The founding paper's two claims, in the measures in which they hold: the accelerated "
    "deterministic sampler reaches order 2 in total variation where DDIM has 1, and the "
    "accelerated stochastic sampler reaches order 1 in path space, sqrt(path KL / 2), where DDPM "
    "has 1/2.",
    "In the marginal total variation of the final samples plain DDPM already has order 1: the "
    "order 1/2 belongs to the law of the whole path. There the accelerated stochastic sampler is "
    "better by a constant, not by an order. docs/theory.md derives both.",
    "accelerated-sde-readme is the update as the authors' code has it, with the second noise "
    "outside the division: it keeps order 1/2 in path space.",
    "All runs start from the exact noised law, so no error of the prior enters. One-dimensional "
    "measures are quadratures without sampling noise; those on the digits are means over samples "
    "with a standard error, against exact scores of the empirical measure.",
]


def study_report(
    out: str | Path,
    study: Study,
    description: Description,
    pictures: Iterable[Picture] = (),
    notes: Sequence[str] = (),
    *,
    complete: bool = True,
    venue: str | None = None,
) -> list[Path]:
    """Write the report of a study; nothing is computed anew.

    Parameters
    ----------
    out
        Folder of the report.
    study, description, pictures
        What was measured, what it is, and what it looks like.
    notes
        Sentences that come first among the notes.
    complete
        Whether all of the study was measured.
    venue
        Where it is to appear: a key of :data:`~probflow.report.venues.VENUES`.

    Returns
    -------
    list of Path
        Files written, sorted.
    """
    known = description.provenance
    built_in = complete and description.layout == BUILT_IN
    figures = (builtin_figures if built_in else study_figures)(study, known, venue)
    marks = solver_marks(row.solver for row in study.rows)
    figures += picture_figures(pictures, known, venue, marks)
    return write_report(
        out,
        rows=study.rows,
        orders=study.estimates,
        provenance=known,
        figures=_distinct(figures),
        notes=[*notes, *(BUILTIN_NOTES if built_in else ()), *refusal_notes(study)],
        title=description.title,
        venue=venue,
    )


def study_figures(
    study: Study, provenance: Mapping[str, Any], venue: str | None = None
) -> list[Shown]:
    """Rate plots, and work-precision where there are times, for each target and measure.

    A target and measure without a number has none.
    """
    figures: list[Shown] = []
    marks = solver_marks(row.solver for row in study.rows)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in study.rows:
        groups.setdefault((row.target, row.measure), []).append(row)
    for (target, name), rows in groups.items():
        solvers = {row.solver for row in rows if row.status == "ok"}
        rows = [row for row in rows if row.solver in solvers]
        if not rows:
            continue
        orders = [o for o in study.estimates if (o.target, o.measure) == (target, name)]
        orders = [order for order in orders if order.solver in solvers]
        look: dict[str, Any] = {"measure": name, "footer": footer_text(provenance, rows, venue)}
        if len({row.grid for row in rows}) == 1:  # a solver looks the same in every figure
            look["marks"] = marks
        axis: Any = "h" if orders and orders[0].axis == "h" else "T"
        caption = rate_caption(rows, orders, provenance)
        draw = partial(rate_plot, rows, orders, axis=axis, **look)
        figures.append(_shown(f"{target}-{name}", caption, draw, venue))
        timings = [timing for timing in study.timings if timing.target == target]
        if timings:
            place = place_text(name, target, rows[0].grid)
            caption = sentences(
                f"work-precision: {place}, against model calls and against the median "
                f"wall time of {timings[0].repeats} runs; bars are quartiles",
                settings_text(provenance),
            )
            draw = partial(work_precision, rows, timings, **look)
            figures.append(_shown(f"{target}-{name}-work-precision", caption, draw, venue))
    return figures


def picture_figures(
    pictures: Iterable[Picture],
    provenance: Mapping[str, Any],
    venue: str | None = None,
    marks: Marks | None = None,
) -> list[Shown]:
    """The figures of the pictures that show something."""
    return [
        _shown(
            picture_name(picture),
            picture_caption(picture, provenance),
            partial(picture_plot, picture, footer=_footer(picture, provenance, venue), marks=marks),
            venue,
        )
        for picture in pictures
        if picture.shows
    ]


def _footer(picture: Picture, provenance: Mapping[str, Any], venue: str | None) -> str:
    """The small print of a picture; a paper's caption says it."""
    if venue is not None:
        return ""
    known = footer_text(provenance)
    return f"{known}{', ' if known else ''}target {picture.target}, grid {picture.grid}"


def _shown(name: str, caption: str, draw: Callable[..., Figure], venue: str | None) -> Shown:
    """A figure at the width of the text, and at that of a column where the venue has two."""
    two = venue is not None and page_width(1, venue) < page_width(2, venue)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "figure"
    narrow = draw(columns=1, venue=venue) if two else None
    return Shown(name, caption, draw(columns=2, venue=venue), narrow)


def _distinct(figures: Iterable[Shown]) -> list[Shown]:
    """Figures whose names differ."""
    names: set[str] = set()
    distinct = []
    for figure in figures:
        name, count = figure.name, 2
        while name.lower() in names:
            name, count = f"{figure.name}-{count}", count + 1
        names.add(name.lower())
        distinct.append(figure._replace(name=name))
    return distinct


def builtin_figures(
    study: Study, provenance: Mapping[str, Any], venue: str | None = None
) -> list[Shown]:
    """The figures of the built-in study: rates on the mixture and on the digits."""

    def panel(target: str, name: str, stochastic: bool, title: str) -> Panel:
        def chosen(item: Any) -> bool:
            return (
                item.target == target
                and item.measure == name
                and get_solver(item.solver).stochastic == stochastic
            )

        return Panel(
            [row for row in study.rows if chosen(row) and row.status == "ok"],
            [order for order in study.estimates if chosen(order)],
            name,
            title=title,
        )

    def figure(name: str, caption: str, panels: list[Panel]) -> Shown:
        rows = [row for p in panels for row in p.rows]
        windows = (f"{p.title}: {window_sentence(p.orders)}" for p in panels)
        known = sentences(f"grid {rows[0].grid}", *windows, settings_text(provenance))
        return Shown(
            name,
            f"{caption} {known}",
            rate_panels(panels, footer=footer_text(provenance, rows, venue), venue=venue),
        )

    return [
        figure(
            "rates-mixture",
            "The founding paper's claims on a 1-D Gaussian mixture. Left: total variation of the "
            "deterministic samplers. Middle: path-space divergence of the stochastic samplers. "
            "Right: total variation of the same samplers, where plain DDPM already has order 1. "
            "Below: local orders; dashed lines are the claims.",
            [
                panel("mixture-1d", "tv", False, "deterministic, marginal law"),
                panel("mixture-1d", "path-kl", True, "stochastic, path law"),
                panel("mixture-1d", "tv", True, "stochastic, marginal law"),
            ],
        ),
        figure(
            "rates-digits",
            "Real data: 1 797 handwritten digits in 64 dimensions, exact score of the noised "
            "empirical measure. Left: strong error of the deterministic samplers. Right: "
            "path-space divergence of the stochastic samplers with a tractable kernel. 96 samples "
            "left, 384 (half-noise: 32) paths right; bars are 95 % intervals.",
            [
                panel("digits", "strong", False, "digits: against the exact-score flow"),
                panel("digits", "path-kl", True, "digits: path law"),
            ],
        ),
    ]


def refusal_notes(study: Study) -> list[str]:
    """One note for each curve that could not be measured, with the reason."""
    notes: dict[str, None] = {}
    for row in study.rows:
        if row.status != "ok":
            notes[f"{row.measure} on {row.target}: {row.status}"] = None
    return list(notes)
