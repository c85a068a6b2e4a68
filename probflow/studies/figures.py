"""Figures of a study's report, and those of ``probflow sample``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probflow.processes import Process
from probflow.report import (
    Panel,
    density_plot,
    footer_text,
    image_grid,
    rate_panels,
    rate_plot,
)
from probflow.solvers import get_solver
from probflow.studies.builtin import NFE_BUDGETS, digit_pictures
from probflow.studies.rows import MEASURES, Row
from probflow.studies.runner import Study
from probflow.targets import Target

__all__ = ["BUILTIN_NOTES", "builtin_figures", "refusal_notes", "samples_figure", "study_figures"]

Figures = list[tuple[str, str, Any]]

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


def study_figures(study: Study, provenance: Mapping[str, Any]) -> Figures:
    """A rate plot for each target and measure that has at least one number."""
    figures: Figures = []
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in study.rows:
        groups.setdefault((row.target, row.measure), []).append(row)
    for (target, name), rows in groups.items():
        solvers = {row.solver for row in rows if row.status == "ok"}
        rows = [row for row in rows if row.solver in solvers]
        if not rows:
            continue
        orders = [o for o in study.estimates if (o.target, o.measure) == (target, name)]
        axis: Any = "h" if orders and orders[0].axis == "h" else "T"
        figure = rate_plot(
            rows, orders, measure=name, axis=axis, footer=footer_text(provenance, rows)
        )
        caption = f"{MEASURES[name]} on {target}, grid {rows[0].grid}."
        figures.append((f"{target}-{name}", caption, figure))
    return figures


def builtin_figures(study: Study, provenance: Mapping[str, Any]) -> Figures:
    """The figures of the built-in study: rates on the mixture, on the digits, and pictures."""

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

    def footer(panels: list[Panel]) -> str:
        return footer_text(provenance, [row for p in panels for row in p.rows])

    line = [
        panel("mixture-1d", "tv", False, "deterministic, marginal law"),
        panel("mixture-1d", "path-kl", True, "stochastic, path law"),
        panel("mixture-1d", "tv", True, "stochastic, marginal law"),
    ]
    real = [
        panel("digits", "strong", False, "digits: against the exact-score flow"),
        panel("digits", "path-kl", True, "digits: path law"),
    ]
    labels = [f"{budget} NFE" for budget in NFE_BUDGETS]
    pictures = digit_pictures(seed=int(provenance["seed"]))
    return [
        (
            "rates-mixture",
            "The founding paper's claims on a 1-D Gaussian mixture. Left: total variation of the "
            "deterministic samplers. Middle: path-space divergence of the stochastic samplers. "
            "Right: total variation of the same samplers, where plain DDPM already has order 1. "
            "Below: local orders; dashed lines are the claims.",
            rate_panels(line, footer=footer(line)),
        ),
        (
            "rates-digits",
            "Real data: 1 797 handwritten digits in 64 dimensions, exact score of the noised "
            "empirical measure. Left: strong error of the deterministic samplers. Right: "
            "path-space divergence of the stochastic samplers with a tractable kernel. 96 samples "
            "left, 384 (half-noise: 32) paths right; bars are 95 % intervals.",
            rate_panels(real, footer=footer(real)),
        ),
        (
            "digits-samples",
            "Digits generated from the same noise with the exact score of the empirical measure, "
            "at most 5, 10 and 20 model evaluations.",
            image_grid(pictures, labels, vmin=-1.0, vmax=1.0),
        ),
    ]


def refusal_notes(study: Study) -> list[str]:
    """One note for each curve that could not be measured, with the reason."""
    notes: dict[str, None] = {}
    for row in study.rows:
        if row.status != "ok":
            notes[f"{row.measure} on {row.target}: {row.status}"] = None
    return list(notes)


def samples_figure(x: np.ndarray, target: Target | None, process: Process) -> Any:
    """Picture of samples: images, a histogram (1-D) or a scatter plot of two coordinates."""
    flat = x.reshape(len(x), -1)
    side = round(flat.shape[1] ** 0.5)
    if x.ndim == 4 and x.shape[1] in (1, 3):
        images = [image.transpose(1, 2, 0).squeeze() * 0.5 + 0.5 for image in x]
        return _square_grid([np.clip(image, 0, 1) for image in images])
    if flat.shape[1] > 3 and side * side == flat.shape[1]:
        return _square_grid(list(flat.reshape(-1, side, side)))
    if flat.shape[1] == 1:
        return _histogram(flat[:, 0], target, process)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(flat[:, 0], flat[:, 1], ".", markersize=2)
    axes.set(xlabel="$x_1$", ylabel="$x_2$")
    return figure


def _square_grid(images: list[np.ndarray]) -> Any:
    columns = int(np.ceil(len(images) ** 0.5))
    white = 1.0 if images[0].ndim == 3 else min(image.min() for image in images)
    images = images + [np.full_like(images[0], white)] * (-len(images) % columns)
    # Rows are labelled by the index of their first sample.
    rows = {str(i): images[i : i + columns] for i in range(0, len(images), columns)}
    return image_grid(rows, [""])


def _histogram(values: np.ndarray, target: Target | None, process: Process) -> Any:
    counts, edges = np.histogram(values, bins=max(20, int(2 * len(values) ** 0.5)), density=True)
    curve = {"samples": (np.repeat(edges, 2)[1:-1], np.repeat(counts, 2))}
    truth = None
    if target is not None:
        import torch

        grid = np.linspace(edges[0], edges[-1], 400)
        end = process.end
        log_density = target.log_prob(
            torch.from_numpy(grid)[:, None], float(process.alpha(end)), float(process.sigma(end))
        )
        truth = (grid, np.exp(log_density.numpy()))
    return density_plot(curve, truth)
