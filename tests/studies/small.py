"""A small study for tests of the runner: exact strong errors in the plane, milliseconds a cell."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import probflow as pf
from probflow.studies.cells import Curve
from probflow.studies.measure import Settings
from probflow.studies.runner import Study, default_grid, make_curves

STEPS = (2, 4, 8, 16, 32)


def curves(steps: tuple[int, ...] = STEPS, **changed: Any) -> list[Curve]:
    """Two solvers on a Gaussian and on a mixture (which needs a reference)."""
    targets = [
        pf.Gaussian([0.3, -0.2], [0.5, 0.2]),
        pf.GaussianMixture([1, 2], [[-1.0, 0.3], [1.0, -0.4]], stds=[0.5, 0.7]),
    ]
    arguments: dict[str, Any] = {
        "targets": targets,
        "solvers": ["ddim", "ddpm"],
        "steps": steps,
        "measures": ("strong", "path-kl"),
        "grid": default_grid(),
        "process": None,
        "settings": Settings(0, 8, 32),
    }
    return make_curves(**{**arguments, **changed})


def text(study: Study) -> list[str]:
    """Rows and estimates as texts, to compare (NaN is equal to itself)."""
    return [repr(asdict(item)) for item in (*study.rows, *study.estimates)]
