"""Intervals of orders with the covariance by the delta method and by the paired bootstrap.

python benchmarks/bootstrap.py

Each curve is measured once; then its order is fitted twice. The third row of numbers takes the
errors as independent, as one would without common random numbers.
"""

from __future__ import annotations

import numpy as np

import probflow as pf
from probflow.studies.cells import Cell, Task, measure_cells, reference_of, wants_reference
from probflow.studies.config import digits
from probflow.studies.measure import Settings, bootstrap_covariance, log_covariance
from probflow.studies.order import fit_order
from probflow.studies.runner import make_curves

PLANE = pf.GaussianMixture([1, 2], [[-1.0, 0.3], [1.0, -0.4]], stds=[0.5, 0.7])
NEAR, FAR = 0.01005033585350145, 3.0
CASES = (
    (PLANE, "ddim", "strong", 100, NEAR),
    (PLANE, "accelerated-ode", "tv", 500, NEAR),
    (PLANE, "accelerated-sde-half-noise", "path-kl", 100, NEAR),
    (PLANE, "ddpm", "weak", 5000, NEAR),
    (PLANE, "accelerated-sde", "chi2", 200, NEAR),
    (digits(), "ddim", "strong", 32, 0.5),
    (digits(), "heun", "strong", 32, 0.5),
)
STEPS = (8, 16, 32, 64, 128)


def cells(target: pf.Target, solver: str, measure: str, samples: int, end: float) -> list[Cell]:
    """The cells of one curve."""
    [curve] = make_curves(
        targets=[target],
        solvers=[solver],
        steps=STEPS,
        measures=(measure,),
        grid=pf.grids.log_snr(FAR, end, unit="neg_log_ab"),
        process=None,
        settings=Settings(samples=samples),
    )
    reference = reference_of(curve) if wants_reference(curve) else None
    return [measure_cells(Task(curve, steps, (measure,)), reference)[0] for steps in STEPS]


def main() -> None:
    """Print a Markdown table."""
    print("| target | solver, measure | samples | delta method | paired bootstrap | independent |")
    print("|---|---|---|---|---|---|")
    for target, solver, name, samples, end in CASES:
        known = [m for c in cells(target, solver, name, samples, end) if (m := c.measurement)]
        texts = []
        delta = log_covariance(known)
        assert delta is not None
        for covariance in (delta, bootstrap_covariance(known), np.diag(np.diag(delta))):
            estimate = fit_order(
                STEPS[-len(known) :],
                [m.error for m in known],
                covariance=covariance,
                floor=np.array([m.floor for m in known]),
            ).estimate
            texts.append(f"{estimate.order:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]")
        print(f"| {target.name} | `{solver}`, {name} | {samples} | " + " | ".join(texts) + " |")


if __name__ == "__main__":
    main()
