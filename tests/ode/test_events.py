"""Events: where they are found, how accurately, and how they move."""

from __future__ import annotations

import math

import pytest
import torch
from equations import DOUBLE, rotated, rotation

import probflow as pf
from probflow.tableaus import TABLEAUS

METHODS = [(n, {} if t.adaptive else {"step_size": 0.01}) for n, t in TABLEAUS.items()]
METHODS.append(("explicit_adams", {"step_size": 0.01, "interp": "cubic"}))
ORDERS = {name: tableau.order for name, tableau in TABLEAUS.items()} | {"explicit_adams": 4}
Y0 = torch.tensor([1.0, 0.0], dtype=DOUBLE)
# y[1] = sin(t + t^2/2) reaches 0.8 here:
ANGLE = math.asin(0.8)
TIME = math.sqrt(1 + 2 * ANGLE) - 1


def event(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y[1] - 0.8


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_time_and_state_have_the_accuracy_of_the_method(method: str, options: dict) -> None:
    tol = 1e-5 if ORDERS[method] < 3 else 1e-9
    t, y = pf.odeint_event(
        rotation, Y0, torch.tensor(0.0).double(), event_fn=event, method=method, options=options,
        rtol=tol, atol=tol,
    )  # fmt: skip
    special = {"euler": 2e-2, "midpoint": 1e-4, "heun2": 1e-4, "heun3": 1e-6, "fehlberg2": 1e-2,
               "explicit_adams": 1e-7}  # fmt: skip
    bound = special.get(method, 50 * tol)
    assert float(t) == pytest.approx(TIME, abs=bound)
    assert y.shape == (2, 2)
    assert torch.equal(y[0], Y0)
    assert float((y[1] - rotated(Y0, float(t))).abs().max()) < bound
    # The numerical solution is at the event however far it is from the exact one.
    assert float(y[1, 1]) == pytest.approx(0.8, abs=3e-5 if method == "euler" else 1e-7)


@pytest.mark.parametrize("interface", [pf.odeint, pf.odeint_adjoint])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "explicit_adams"])
def test_the_second_time_tells_only_the_direction(method: str, interface) -> None:
    """It may be infinite, as in torchdiffeq; a tuple of times that is not is refused as ever."""
    options, y0 = dict(METHODS)[method], Y0.clone().requires_grad_()
    found = []
    for end in (0.1, math.inf):
        ends = torch.tensor([0.0, end], dtype=DOUBLE)
        how = {"adjoint_params": ()} if interface is pf.odeint_adjoint else {}
        t, y = interface(rotation, y0, ends, event_fn=event, method=method, options=options, **how)
        found.append((t, y.detach(), *torch.autograd.grad(y[-1].sum(), y0)))
    assert all(torch.equal(a.detach(), b.detach()) for a, b in zip(*found, strict=True))
    for bad in ([0.0, math.nan], [math.inf, 0.0], [0.0, 1.0, math.inf]):
        with pytest.raises(ValueError, match=r"^t: "):
            interface(rotation, y0, bad, event_fn=event, method=method, options=options, **how)
    with pytest.raises(ValueError, match=r"^t: times must be finite"):
        interface(rotation, y0, [0.0, math.inf], method=method, **how)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "dopri8", "bosh3"])
def test_error_of_the_time_falls_with_the_tolerance(method: str) -> None:
    errors = []
    for tol in (1e-5, 1e-7, 1e-9):
        t, _ = pf.odeint(
            rotation, Y0, [0.0, 1.0], method=method, rtol=tol, atol=tol, event_fn=event
        )
        errors.append(abs(float(t) - TIME))
        assert errors[-1] < 30 * tol
    assert errors[2] < 1e-2 * errors[0]


@pytest.mark.parametrize("reverse", [False, True])
def test_both_directions_beyond_the_second_time(reverse: bool) -> None:
    sign = -1.0 if reverse else 1.0
    t, y = pf.odeint_event(
        lambda t, y: torch.ones_like(y),
        torch.zeros(1, dtype=DOUBLE),
        torch.tensor(2.0, dtype=DOUBLE),
        event_fn=lambda t, y: y - sign * 7.5,
        reverse_time=reverse,
    )
    assert float(t) == pytest.approx(2.0 + sign * 7.5)
    assert float(y[-1]) == pytest.approx(sign * 7.5)


def test_several_components_stop_at_the_first() -> None:
    def both(t, y):
        return torch.stack((y[1] - 0.8, t - 0.25))

    t, _ = pf.odeint(rotation, Y0, [0.0, 1.0], event_fn=both)
    assert float(t) == pytest.approx(0.25, abs=1e-8)


def test_tuples_and_information() -> None:
    t, (x, s) = pf.odeint(
        lambda t, y: (rotation(t, y[0]), -y[1]),
        (Y0, torch.ones((), dtype=DOUBLE)),
        torch.tensor([0.0, 1.0], dtype=DOUBLE),
        event_fn=lambda t, y: y[0][1] - 0.8,
    )
    assert float(t) == pytest.approx(TIME, abs=1e-7)
    assert x.shape == (2, 2)
    assert float(s[-1]) == pytest.approx(math.exp(-TIME), abs=1e-7)
    result = pf.solve_ode(rotation, Y0, [0.0, 1.0], event_fn=event)
    assert result.message == "the event was found"
    assert float(result.event_t) == pytest.approx(TIME, abs=1e-7)
    assert result.nfe > result.accepted


def test_an_event_at_the_start_and_none_at_all() -> None:
    t, y = pf.odeint(rotation, Y0, [0.0, 1.0], event_fn=lambda t, y: y[1])
    assert float(t) == 0.0
    assert torch.equal(y, torch.stack((Y0, Y0)))
    with pytest.raises(pf.MaxStepsError, match=r"no change of sign in 20 steps, up to t = "):
        pf.odeint(rotation, Y0, [0.0, 1.0], event_fn=lambda t, y: y[1] - 9,
                  options={"max_num_steps": 20})  # fmt: skip


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"with event_fn two times are needed.*got 3"):
        pf.odeint(rotation, Y0, [0.0, 1.0, 2.0], event_fn=event)
    with pytest.raises(ValueError, match="step_size: rk4 needs it"):
        pf.odeint(rotation, Y0, [0.0, 1.0], method="rk4", event_fn=event)
    for options in ({"grid_constructor": lambda f, y, t: t}, {"gradients": "checkpoint"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: not available with event_fn"):
            pf.odeint(rotation, Y0, [0.0, 1.0], method="rk4", event_fn=event,
                      options={"step_size": 0.1, **options})  # fmt: skip
    with pytest.raises(ValueError, match="event_fn: scipy_solver does not look for events"):
        pf.odeint(rotation, Y0, torch.tensor([0.0, 1.0]), method="scipy_solver", event_fn=event)
    with pytest.raises(TypeError, match="event_fn: must return a tensor, returned bool"):
        pf.odeint(rotation, Y0, [0.0, 1.0], event_fn=lambda t, y: bool(y[1] > 0.8))


def test_the_time_of_an_event_of_a_complex_state_moves_as_it_should() -> None:
    for event in (lambda t, y: y.imag, lambda t, y: y.real, lambda t, y: ((1 + 2j) * y).real):
        angle = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
        y0 = torch.polar(torch.ones((), dtype=DOUBLE), angle)
        t0 = torch.tensor(0.0, dtype=DOUBLE)
        t, _ = pf.odeint_event(lambda t, y: 1j * y, y0, t0, event_fn=event)
        (slope,) = torch.autograd.grad(t, angle)
        assert float(slope) == pytest.approx(-1.0, abs=1e-6)


def test_the_second_derivative_of_an_events_time() -> None:
    """y = y0 e^t reaches 3 at t = ln 3 - ln y0."""
    y0 = torch.tensor([2.0], dtype=DOUBLE, requires_grad=True)
    t0 = torch.tensor(0.0, dtype=DOUBLE)
    t, y = pf.odeint_event(lambda t, y: y, y0, t0, event_fn=lambda t, y: y[0] - 3.0)
    (slope,) = torch.autograd.grad(t**2 * y0.sum(), y0, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), y0, retain_graph=True)
    assert float(second) == pytest.approx((2.0 - 2.0 * math.log(1.5)) / 2.0, rel=1e-6)
    (slope,) = torch.autograd.grad(y[-1].sum(), y0, create_graph=True)
    assert float(slope.detach()) == pytest.approx(0.0, abs=1e-9)
    assert float(torch.autograd.grad(slope, y0)[0]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("method", "kind"),
    [("dopri5", "tensor"), ("dopri5", "tuple"), ("dopri8", "complex"), ("rk4", "tensor"),
     ("explicit_adams", "tuple")],
)  # fmt: skip
def test_first_and_second_derivatives_by_finite_differences(method: str, kind: str) -> None:
    """Of time and state, by initial state, field and event, all of which depend on time."""
    options = dict(METHODS)[method]

    def event_of(x, y, rate, level):
        def func(t, u):
            x, y = (u.real, u.imag) if kind == "complex" else u
            dx, dy = (1 + t * x) * y, -rate * torch.sin(x) + 0.1 * t * y**2
            made = torch.complex if kind == "complex" else lambda *parts: torch.stack(parts)
            return (dx, dy) if kind == "tuple" else made(dx, dy)

        def event_fn(t, u):
            x, y = (u.real, u.imag) if kind == "complex" else u
            return x * torch.cos(t) + y**2 * t - level

        y0 = {"tuple": (x, y), "complex": torch.complex(x, y), "tensor": torch.stack((x, y))}[kind]
        t, u = pf.odeint_event(
            func, y0, torch.tensor(0.2, dtype=DOUBLE), event_fn=event_fn, method=method,
            options=options, rtol=1e-11, atol=1e-11,
        )  # fmt: skip
        parts = u if kind == "tuple" else (torch.view_as_real(u) if u.is_complex() else u).unbind(1)
        return t, *(part[-1] for part in parts)

    numbers = [torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (0.3, 1.0, 1.3, 0.9)]
    assert torch.autograd.gradcheck(event_of, numbers, eps=1e-5, atol=1e-6)
    assert torch.autograd.gradgradcheck(event_of, numbers, eps=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "options"), [("dopri5", {}), ("rk4", {"step_size": 0.1})])
def test_nan_ends_the_search(method: str, options: dict) -> None:
    def solve(func, event_fn):
        pf.odeint(func, Y0, [0.0, 1.0], method=method, options=options, event_fn=event_fn)

    with pytest.raises(pf.NonFiniteError, match=r"event_fn: returned NaN at t = "):
        solve(rotation, lambda t, y: torch.where(t > 0.3, torch.nan, y[0] + 9.0))
    with pytest.raises(pf.NonFiniteError, match=r"func: returned NaN or infinity .*sample 1"):
        solve(lambda t, y: y * torch.stack([t, torch.where(t > 0.3, torch.nan, t)]), event)


def test_perturb_keeps_the_search_off_the_steps_ends() -> None:
    for method in ("rk4", "explicit_adams"):
        seen: list[float] = []

        def func(t, y, seen=seen):
            seen.append(float(t))
            return rotation(t, y)

        options = {"step_size": 0.25, "perturb": True}
        t, _ = pf.odeint(func, Y0, [0.0, 1.0], method=method, options=options, event_fn=event)
        assert float(t) == pytest.approx(TIME, abs=1e-3)
        assert not {0.0, 0.25, 0.5} & set(seen)


def test_progress_of_a_search(capsys: pytest.CaptureFixture) -> None:
    pf.odeint(rotation, Y0, [0.0, 1.0], event_fn=event, options={"progress": True})
    assert "dopri5" in capsys.readouterr().err
