"""The picture that ``probflow sample`` draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from probflow.processes import Process
from probflow.report import density_plot, image_grid
from probflow.targets import Target

__all__ = ["samples_figure"]


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
