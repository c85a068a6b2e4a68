"""Strong orders, measured on shared paths; moments; evaluations."""

from __future__ import annotations

import functools
import math
import warnings

import numpy as np
import pytest
import torch
import torchsde
from sde_examples import (
    DOUBLE,
    Commutative,
    Example,
    FinePath,
    Geometric,
    Ornstein,
    Rotation,
    Sine,
    start_of,
)

import probflow as pf
from probflow.sde.methods import _METHODS, choose

BATCH, GROUPS = 1024, 16
LEVELS = (4, 5, 6, 7, 8)
FREE = {"grad_free": True}
EMBEDDED = {"error_estimate": "embedded"}

# (method, options, SDE, type, order). Half orders arise where Levy areas enter (Rotation) and where
# euler leaves out the derivative of the diffusion.
CASES = [
    ("euler", None, Geometric, "ito", 0.5),
    ("euler", None, Sine, "ito", 0.5),
    ("euler", None, Ornstein, "ito", 1.0),
    ("euler", None, Commutative, "ito", 0.5),
    ("euler", None, Rotation, "ito", 0.5),
    ("milstein", None, Geometric, "ito", 1.0),
    ("milstein", None, Sine, "ito", 1.0),
    ("milstein", None, Ornstein, "ito", 1.0),
    ("milstein", FREE, Geometric, "ito", 1.0),
    ("milstein", FREE, Sine, "ito", 1.0),
    ("milstein", FREE, Ornstein, "ito", 1.0),
    ("srk", None, Geometric, "ito", 1.5),
    ("srk", None, Sine, "ito", 1.5),
    ("srk", None, Ornstein, "ito", 1.5),
    ("milstein", None, Geometric, "stratonovich", 1.0),
    ("milstein", None, Sine, "stratonovich", 1.0),
    ("milstein", None, Ornstein, "stratonovich", 1.0),
    ("milstein", FREE, Geometric, "stratonovich", 1.0),
    ("milstein", FREE, Sine, "stratonovich", 1.0),
    ("milstein", FREE, Ornstein, "stratonovich", 1.0),
    *(
        (method, None, sde, "stratonovich", order)
        for method in ("heun", "euler_heun", "midpoint")
        for sde, order in (
            (Geometric, 1.0),
            (Sine, 1.0),
            (Ornstein, 1.0),
            (Commutative, 1.0),
            (Rotation, 0.5),
        )
    ),
    ("reversible_heun", None, Geometric, "stratonovich", 1.0),
    ("reversible_heun", None, Sine, "stratonovich", 1.0),
    ("reversible_heun", None, Ornstein, "stratonovich", 1.0),
    ("reversible_heun", None, Commutative, "stratonovich", 1.0),
    ("reversible_heun", None, Rotation, "stratonovich", 0.5),
    ("log_ode", None, Geometric, "stratonovich", 1.0),
    ("log_ode", None, Sine, "stratonovich", 1.0),
    ("log_ode", None, Ornstein, "stratonovich", 1.0),
    ("log_ode", None, Commutative, "stratonovich", 1.0),
    ("log_ode", None, Rotation, "stratonovich", 1.0),
]


def test_every_method_is_measured_for_every_kind_of_noise() -> None:
    measured = {(name, sde_type, sde.noise_type) for name, _, sde, sde_type, _ in CASES}
    offered = {(m.name, m.sde_type, noise) for m in _METHODS for noise in m.noise_types}
    assert offered <= measured


@functools.cache
def truth_of(kind: type[Example]) -> tuple[FinePath, torch.Tensor, torch.Tensor]:
    """Path, initial state and solution at time 1, the same for both types of SDE."""
    # A reference of order 1 for a method of order 1/2 is on a grid 16 times finer than the finest.
    path = FinePath(BATCH, kind.noises, 12 if kind is Rotation else 10)
    y0 = start_of(kind(), BATCH)
    if kind.exact is not None:
        return path, y0, kind().exact(y0, path.w[-1])
    sde_type, method = ("ito", "srk") if kind is Ornstein else ("stratonovich", "log_ode")
    return path, y0, pf.sdeint(kind(sde_type), y0, [0.0, 1.0], path, method, path.h)[-1]


def slopes(method: str, options, sde: Example) -> np.ndarray:
    """Fitted orders of independent groups of paths, (GROUPS,)."""
    path, y0, truth = truth_of(type(sde))
    errors = []
    for level in LEVELS:
        y = pf.sdeint(sde, y0, [0.0, 1.0], path, method, 2.0**-level, options=options)[-1]
        square = (y - truth).square().sum(1).reshape(GROUPS, -1).mean(1)
        errors.append(square.sqrt().log2().numpy())
    return -np.polyfit(LEVELS, np.stack(errors), 1)[0]


@pytest.mark.parametrize(("method", "options", "sde", "sde_type", "order"), CASES)
def test_strong_order(method: str, options, sde, sde_type: str, order: float) -> None:
    fitted = slopes(method, options, sde(sde_type))
    mean, deviation = fitted.mean(), fitted.std(ddof=1) / math.sqrt(GROUPS)
    # Orders are multiples of 1/2, so that a slope within 1/4 excludes all others; three standard
    # errors must leave room in it for the bias of finite steps.
    assert 3.0 * deviation < 0.125
    assert abs(mean - order) < 0.25 - 3.0 * deviation
    declared = choose(method, sde_type, sde.noise_type, options).strong_order(sde.noise_type)
    if sde is not Commutative and (method, sde) != ("log_ode", Rotation):
        assert declared == order  # those two are better than general noise allows
    else:
        assert declared <= order


def test_log_ode_with_an_approximate_area_still_beats_midpoint() -> None:
    sde = Rotation("stratonovich")
    fine, y0, truth = truth_of(Rotation)
    errors = [
        (pf.sdeint(sde, y0, [0.0, 1.0], fine, method, 2.0**-5)[-1] - truth).square().mean()
        for method in ("midpoint", "log_ode")
    ]
    assert errors[1] < 0.1 * errors[0]


def test_milstein_for_scalar_noise_with_a_jacobian_that_is_not_symmetric() -> None:
    """torchsde multiplies by the transposed Jacobian there, and falls back to order 1/2."""
    sde = Sine("ito")
    path, y0, truth = truth_of(Sine)
    ts = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    ours = pf.sdeint(sde, y0, ts, path, "milstein", 2.0**-8)[-1]
    theirs = torchsde.sdeint(sde, y0, ts, path, "milstein", 2.0**-8)[-1]
    assert (ours - truth).square().mean() < 0.05 * (theirs - truth).square().mean()


class Hyperbolic(torch.nn.Module):
    """dY = sqrt(1 + Y^2) o dW, Y = sinh(asinh(Y_0) + W): a diffusion that curves everywhere."""

    sde_type, noise_type = "stratonovich", "diagonal"

    def f(self, t, y):
        return torch.zeros_like(y)

    def g(self, t, y):
        return torch.sqrt(1.0 + y * y)


def test_milstein_without_derivatives_has_order_1_where_the_diffusion_curves() -> None:
    """torchsde's support y + sqrt(h) g leaves g'' g^2 sqrt(h) W^2 / 4, whose mean is not 0."""
    y0, ts = torch.full((2000, 1), 0.3, dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    path = pf.BrownianInterval(0.0, 1.0, (2000, 1), DOUBLE, entropy=0, dt=2.0**-9)
    truth = torch.sinh(math.asinh(0.3) + path(0.0, 1.0))
    rates = []
    for library in (pf, torchsde):
        with torch.no_grad():
            errors = [
                library.sdeint(Hyperbolic(), y0, ts, path, "milstein", 2.0**-k, options=FREE)[-1]
                - truth
                for k in (6, 9)
            ]
        rates.append(float((errors[0].square().mean() / errors[1].square().mean()).log2()) / 6)
    assert abs(rates[0] - 1.0) < 0.15
    assert abs(rates[1] - 0.5) < 0.15


# Moments ----------------------------------------------------------------------------------------


def z_scores(samples: torch.Tensor, mean: float, second: float) -> list[float]:
    """Distance of sample moments from the true ones, in standard errors."""
    return [
        float((x.mean() - m) / (x.std() / math.sqrt(len(x))))
        for x, m in ((samples, mean), (samples.square(), second))
    ]


def test_moments_of_euler_are_those_of_its_recursion() -> None:
    # E y' = (1 + a h) E y and E y'^2 = ((1 + a h)^2 + b^2 h) E y^2, without any bias.
    a, b, n = 0.3 + 0.32, 0.8, 16
    sde, y0 = Geometric("ito"), torch.ones(40000, 2, dtype=DOUBLE)
    y = pf.sdeint(sde, y0, [0.0, 1.0], None, "euler", 1 / n, options={"seed": 1})[-1, :, 0]
    mean, second = (1 + a / n) ** n, ((1 + a / n) ** 2 + b * b / n) ** n
    assert max(map(abs, z_scores(y, mean, second))) < 4.0


@pytest.mark.parametrize(
    ("method", "sde_type"),
    [("milstein", "ito"), ("srk", "ito")]
    + [(m, "stratonovich") for m in ("milstein", "heun", "euler_heun", "midpoint", "log_ode")],
)
def test_moments_of_the_geometric_brownian_motion(method: str, sde_type: str) -> None:
    # Weak order 1 with constants below 1 here: at h = 1/128 a bias below 1%, beside a sampling
    # error of 0.5% (mean) and 1.5% (second moment).
    sde, y0 = Geometric(sde_type), torch.ones(40000, 2, dtype=DOUBLE)
    y = pf.sdeint(sde, y0, [0.0, 1.0], None, method, 1 / 128, options={"seed": 2})[-1, :, 1]
    mean, second = math.exp(0.3 + 0.18), math.exp(0.6 + 0.72)
    for x, m in ((y, mean), (y.square(), second)):
        assert abs(float(x.mean()) - m) < 0.01 * m + 4.0 * float(x.std()) / 200.0


# Evaluations ------------------------------------------------------------------------------------


class Counted(torch.nn.Module):
    def __init__(self, sde: Example) -> None:
        super().__init__()
        self.sde, self.noise_type, self.sde_type = sde, sde.noise_type, sde.sde_type
        self.calls = {"f": 0, "g": 0}

    def f(self, t, y):
        self.calls["f"] += 1
        return self.sde.f(t, y)

    def g(self, t, y):
        self.calls["g"] += 1
        return self.sde.g(t, y)


EVALUATIONS = [
    ("euler", None, Geometric, "ito", (1, 1)),
    ("milstein", None, Geometric, "ito", (1, 1)),
    ("milstein", FREE, Geometric, "ito", (1, 2)),
    ("srk", None, Geometric, "ito", (3, 4)),
    ("srk", None, Sine, "ito", (3, 4)),
    ("srk", None, Ornstein, "ito", (2, 2)),
    ("heun", None, Geometric, "stratonovich", (2, 2)),
    ("euler_heun", None, Geometric, "stratonovich", (1, 2)),
    ("midpoint", None, Commutative, "stratonovich", (2, 2)),
    ("log_ode", None, Commutative, "stratonovich", (2, 3)),
    ("log_ode", None, Geometric, "stratonovich", (2, 2)),
]
each_method = pytest.mark.parametrize(
    ("method", "options", "sde", "sde_type", "evaluations"), EVALUATIONS
)


@each_method
def test_evaluations_per_step(method, options, sde, sde_type, evaluations) -> None:
    counted, path = Counted(sde(sde_type)), FinePath(4, sde.noises)
    pf.sdeint(counted, start_of(sde(), 4), [0.0, 1.0], path, method, 1 / 8, options=options)
    assert (counted.calls["f"], counted.calls["g"]) == tuple(8 * n for n in evaluations)
    # One adaptive step, once whole and once in halves: what the two share is evaluated once.
    counted.calls = {"f": 0, "g": 0}
    how = {"options": options, "adaptive": True, "rtol": 1e6, "dt": 1 / 8}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "adaptive: with steps chosen")
        pf.sdeint(counted, start_of(sde(), 4), [0.0, 1 / 8], path, method, **how)
    f, g = evaluations
    assert (counted.calls["f"], counted.calls["g"]) == (3 * f - 1, 3 * g - 1)


@each_method
def test_an_embedded_error_estimate_costs_no_evaluation(
    method, options, sde, sde_type, evaluations
) -> None:
    counted, path = Counted(sde(sde_type)), FinePath(4, sde.noises)
    how = {"adaptive": True, "rtol": 1e6, "dt": 1 / 8, "options": {**(options or {}), **EMBEDDED}}
    ts = [0.0, 1 / 8]
    if method == "euler":
        with (
            pytest.warns(UserWarning, match="adaptive: with steps chosen"),
            pytest.raises(ValueError, match=f"error_estimate: euler with {sde.noise_type} noise"),
        ):
            pf.sdeint(counted, start_of(sde(), 4), ts, path, method, **how)
        assert counted.calls == {"f": 0, "g": 0}
        return
    pf.sdeint(counted, start_of(sde(), 4), ts, path, method, **how)
    f, g = evaluations
    milsteins = method == "srk" and sde is not Ornstein  # its support is no stage of srk
    assert (counted.calls["f"], counted.calls["g"]) == (f, g + milsteins)


def test_reversible_heun_evaluates_once_per_step_and_once_before() -> None:
    counted = Counted(Geometric("stratonovich"))
    y0 = start_of(counted.sde, 4)
    pf.sdeint(counted, y0, [0.0, 1.0], FinePath(4, 2), "reversible_heun", 1 / 8)
    assert counted.calls == {"f": 9, "g": 9}


def test_an_unknown_number_of_noises_costs_one_diffusion() -> None:
    counted = Counted(Commutative("ito"))
    pf.sdeint(counted, start_of(counted.sde, 4), [0.0, 1.0], None, "euler", 1 / 8)
    assert counted.calls == {"f": 8, "g": 9}
