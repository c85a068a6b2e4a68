r"""A bound on the KL divergence of samplers that overshoot by an ODE and noise back.

Such a step takes x from t to r < s by an approximate flow and then to s by the forward process, of
variance v. Were the flow exact, the states would have the true laws at all times, so that by the
data-processing inequality the sampler's law is no further from the truth than its path from that
exact path:

.. math:: KL \le \sum_k E_{q_{t_k}} |m_k(x) - m_k^*(x)|^2 / (2 v_k),

with the mean m of the step and m* the exact flow to r, scaled as the forward process does (Jain,
Zhang 2025, arXiv 2508.16306). The time r follows from the step's own noise. A last step without
noise is not part of the bound.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from probflow.laws.line import column, support, true_log_density
from probflow.laws.registers import ExactModel, NormalKernel, Refusal, kernels
from probflow.plan import Plan, Point
from probflow.targets import Target

__all__ = ["certificate"]


def certificate(plan: Plan, process: Any, target: Target, points: int = 201) -> float:
    """The bound above, on the line.

    Raises
    ------
    Refusal
        If the target is not one-dimensional, a step has another form, or the noise of a step is
        more than the forward process could have added.
    """
    if target.dim != 1:
        raise Refusal("the certificate compares with the exact flow, which is known on the line")
    model = ExactModel(plan, process, target)
    total = 0.0
    for number, step in enumerate(plan.steps):
        if not step.noises and number == len(plan.steps) - 1:
            continue
        [kernel, *others] = kernels(step, plan.solver)
        if others or not isinstance(kernel, NormalKernel) or kernel.std == 0:
            raise Refusal(f"{plan.solver}: a step is no map followed by one noise")
        t, s = Point.many(process, [step.start, step.stop])
        sigma = s.sigma**2 - kernel.std**2
        if not sigma > 0:
            raise Refusal(
                f"{plan.solver}: the noise of a step ({kernel.std:.3g}) is more than there is at "
                f"its end ({s.sigma:.3g}): it does not come from the forward process"
            )
        low, high, _ = support(process, target, step.start)
        x = np.linspace(low, high, points)
        density = np.exp(true_log_density(process, target, step.start, x))
        mean = kernel.means(column(x), model)[0][:, 0].numpy()
        levels = (t.alpha, t.sigma), (s.alpha, float(np.sqrt(sigma)))
        exact = target.flow(column(x), *levels)[:, 0].numpy()
        total += float(np.sum(density * (mean - exact) ** 2) * (x[1] - x[0])) / kernel.std**2 / 2
    return total
