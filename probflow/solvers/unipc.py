r"""UniPC: a predictor and a corrector that share one evaluation (Zhao et al. 2023).

In either form of :mod:`probflow.solvers.forms` (on x0, or with the suffix ``-eps`` on eps: f below
is the one or the other) the predictor (UniP) is the Adams-Bashforth sum
over p stored outputs, the corrector (UniC) the Adams-Moulton sum over the same and the output at
the predicted state, which serves the next prediction as well. The order is p + 1: that of the
corrected states. The last state is a prediction, whose error is that of one step. ``start="euler"``
begins with a DDIM step that is corrected afterwards: its error is h^3 and leaves order 3 at most,
as does ``start="heun"``. ``disable_corrector`` numbers the steps, 0 the first of the plan, whose
ends are left as predicted: as long as these are few, the order stays.

The paper's function B(h) (``variant`` "bh1": h, "bh2": e^h - 1) matters for sums of two outputs
only. There, in place of a condition on phi_2, the weight of the slope is fixed at B/2: right to the
leading order in h, and equal to phi_2 with 2 phi_2 for B. In longer sums all conditions are
solved, and B cancels. The form with "varying coefficients" (``variant`` "vary", the paper's
UniPC_v) solves them in every sum, so that it is the exponential Adams-Bashforth-Moulton method.
The authors' code takes a wrong row of the inverse matrix in its corrector, and is of order 1 there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probflow.plan import Linear, Point, StepBuilder
from probflow.solvers.forms import EPS, X0, Form, is_start, lowered, starting_step
from probflow.solvers.phi import adams, moments, phi
from probflow.solvers.registry import order_left, register
from probflow.words import check_choice, check_whole

_UNIPC = "Zhao et al. 2023 (arXiv 2302.04867)"

#: B(h)/h up to sign.
_B = {"bh2": lambda z: phi(1, z), "bh1": lambda z: 1.0, "vary": lambda z: 2.0 * phi(2, z)}


def _predictor(nodes: list[float], z: float, b: float) -> list[float]:
    """Weights of UniP: Adams-Bashforth, of order 2 with b/2 in place of phi_2."""
    if len(nodes) != 2:
        return adams(nodes, moments(len(nodes), z))
    slope = 0.5 * b / nodes[1]
    return [phi(1, z) - slope, slope]


def _corrector(nodes: list[float], z: float, b: float) -> list[float]:
    """Weights of UniC: Adams-Moulton, of order 2 with b/2 in place of phi_2."""
    if len(nodes) != 1:
        return adams([1.0, *nodes], moments(len(nodes) + 1, z))
    return [0.5 * b, phi(1, z) - 0.5 * b]


def _order_left(options: Mapping[str, Any]) -> float:
    """An Euler start is corrected afterwards, and its error h^3."""
    return order_left({**options, "start": "heun"} if options.get("start") == "euler" else options)


def _unipc(
    step: StepBuilder,
    form: Form,
    order: int,
    variant: str,
    disable_corrector: Sequence[int],
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    check_choice("variant", variant, tuple(_B))
    if isinstance(disable_corrector, str) or not isinstance(disable_corrector, Sequence):
        raise TypeError(f"disable_corrector: need a list of numbers, got {disable_corrector!r}")
    for number in disable_corrector:
        check_whole("disable_corrector", number, 0)

    def layout(t: Point, s: Point, stored: list[StepBuilder]) -> tuple[list[float], float, float]:
        """Nodes in units of the step, z, and B(h)/h."""
        h, z = s.lambda_ - t.lambda_, form.z(t, s)
        nodes = [0.0, *((p.t.lambda_ - t.lambda_) / h for p in stored)]
        return nodes, z, _B[variant](z)

    t, s, previous = step.t, step.s, step.previous
    if is_start(len(previous), order - 2, start):
        return starting_step(step, form, order, start)
    f = step.model(step.x, t)
    x = step.x
    predicted = previous and not is_start(len(previous) - 1, order - 2, start)
    if predicted and not any(step.number - 1 == number for number in disable_corrector):
        # The step before again, now with the output at its end: what that changes in its sum.
        up = previous[0].t
        order_before = lowered(order, previous[0], final)
        nodes, z, b = layout(up, t, previous[1:order_before])
        new, *old = _corrector(nodes, z, b)
        changes = [w - v for w, v in zip(old, _predictor(nodes, z, b), strict=True)]
        factor = form.scale(t) * (t.lambda_ - up.lambda_)
        x = Linear.sum(
            [1.0, factor * new, *(factor * change for change in changes)],
            [x, f, *(p.outputs[0] for p in previous[:order_before])],
        )
    if s.sigma == 0:  # from where f was evaluated: the model's x0
        return form.first(step.x, t, s, f)
    stored = previous[: lowered(order, step, final) - 1]
    outputs = [f, *(p.outputs[0] for p in stored)]
    return form.step(x, t, s, _predictor(*layout(t, s, stored)), outputs)


@register(
    "unipc-1",
    reference=f"{_UNIPC}, Algorithms 1 and 2 with p = 1, on x0",
    prediction="x0",
    memory=1,
    orders={"tv": 2, "strong": 2},
    leaves=_order_left,
)
def unipc_1(
    step: StepBuilder, variant: str = "bh2", disable_corrector: Sequence[int] = ()
) -> Linear:
    """x' = L xc + S h phi_1 x0, xc = x + S- h- b-/2 (x0 - x0_before): DDIM, corrected afterwards.

    b is B(h)/h: 1, phi_1 or 2 phi_2 by ``variant``. As ``unipc-2``, with no stored output in the
    prediction.
    """
    return _unipc(step, X0, 1, variant, disable_corrector)


@register(
    "unipc-2",
    reference=f"{_UNIPC}, Algorithms 1 and 2 with p = 2, on x0",
    prediction="x0",
    memory=2,
    orders={"tv": 3, "strong": 3},
    leaves=_order_left,
)
def unipc_2(
    step: StepBuilder,
    variant: str = "bh2",
    disable_corrector: Sequence[int] = (),
    final: str = "keep",
) -> Linear:
    """x' = L xc + S h sum_j w_j x0_j (j = 0, 1), xc = x + S- h- sum_j (w-_j - v-_j) x0_j.

    x is what the step before has predicted with weights v-, x0_0 the output there, and xc the
    corrected state: the same step with the weights w- of the polynomial through x0_0 as well
    (h-, S- belong to that step). So the output at a predicted state serves its correction and the
    next prediction. The last state is a prediction, whose error is that of one step: the order
    holds. A step to sigma' = 0 is a DDIM step from x.
    """
    return _unipc(step, X0, 2, variant, disable_corrector, final=final)


@register(
    "unipc-3",
    aliases=("unipc",),
    reference=f"{_UNIPC}, Algorithms 1 and 2 with p = 3, on x0",
    prediction="x0",
    memory=3,
    orders={"tv": 4, "strong": 4},
    leaves=_order_left,
)
def unipc_3(
    step: StepBuilder,
    variant: str = "bh2",
    disable_corrector: Sequence[int] = (),
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = L xc + S h sum_j w_j x0_j (j = 0 .. 2), xc = x + S- h- sum_j (w-_j - v-_j) x0_j.

    As ``unipc-2``, with one more stored output in all sums.
    """
    return _unipc(step, X0, 3, variant, disable_corrector, start, final)


@register(
    "unipc-4",
    reference=f"{_UNIPC}, Algorithms 1 and 2 with p = 4, on x0",
    prediction="x0",
    memory=4,
    orders={"tv": 5, "strong": 5},
    leaves=_order_left,
)
def unipc_4(
    step: StepBuilder,
    variant: str = "bh2",
    disable_corrector: Sequence[int] = (),
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = L xc + S h sum_j w_j x0_j (j = 0 .. 3), xc = x + S- h- sum_j (w-_j - v-_j) x0_j.

    As ``unipc-2``, with two more stored outputs in all sums.
    """
    return _unipc(step, X0, 4, variant, disable_corrector, start, final)


@register(
    "unipc-1-eps",
    reference=f"{_UNIPC}, Algorithms 1 and 2 with p = 1, on eps",
    prediction="eps",
    memory=1,
    orders={"tv": 2, "strong": 2},
    leaves=_order_left,
)
def unipc_1_eps(
    step: StepBuilder, variant: str = "bh2", disable_corrector: Sequence[int] = ()
) -> Linear:
    """x' = L xc + S h phi_1 eps, xc = x + S- h- b-/2 (eps - eps_before): ``unipc-1`` on eps."""
    return _unipc(step, EPS, 1, variant, disable_corrector)


@register(
    "unipc-2-eps",
    reference=f"{_UNIPC}, Algorithms 1 and 2 with p = 2, on eps",
    prediction="eps",
    memory=2,
    orders={"tv": 3, "strong": 3},
    leaves=_order_left,
)
def unipc_2_eps(
    step: StepBuilder,
    variant: str = "bh2",
    disable_corrector: Sequence[int] = (),
    final: str = "keep",
) -> Linear:
    """x' = L xc + S h sum_j w_j eps_j, j = 0, 1, xc as in ``unipc-2``, on eps."""
    return _unipc(step, EPS, 2, variant, disable_corrector, final=final)


@register(
    "unipc-3-eps",
    reference=f"{_UNIPC}, Algorithms 1 and 2 with p = 3, on eps",
    prediction="eps",
    memory=3,
    orders={"tv": 4, "strong": 4},
    leaves=_order_left,
)
def unipc_3_eps(
    step: StepBuilder,
    variant: str = "bh2",
    disable_corrector: Sequence[int] = (),
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = L xc + S h sum_j w_j eps_j, j = 0 .. 2, xc as in ``unipc-3``, on eps."""
    return _unipc(step, EPS, 3, variant, disable_corrector, start, final)


@register(
    "unipc-4-eps",
    reference=f"{_UNIPC}, Algorithms 1 and 2 with p = 4, on eps",
    prediction="eps",
    memory=4,
    orders={"tv": 5, "strong": 5},
    leaves=_order_left,
)
def unipc_4_eps(
    step: StepBuilder,
    variant: str = "bh2",
    disable_corrector: Sequence[int] = (),
    start: str = "runge-kutta",
    final: str = "keep",
) -> Linear:
    """x' = L xc + S h sum_j w_j eps_j, j = 0 .. 3, xc as in ``unipc-4``, on eps."""
    return _unipc(step, EPS, 4, variant, disable_corrector, start, final)
