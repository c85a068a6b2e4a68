"""Arguments of SDE solves and Brownian motions that do not fit are named, before any call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchsde

import probflow as pf

Y0 = torch.ones(2, 3)
PROCESS = pf.VP.linear()


class Never:
    sde_type, noise_type = "ito", "diagonal"

    def f(self, t, y):
        raise AssertionError("the drift was called")

    def g(self, t, y):
        raise AssertionError("the diffusion was called")


class Decay:
    sde_type, noise_type = "ito", "diagonal"

    def f(self, t, y):
        return -y

    def g(self, t, y):
        return 0.1 * torch.ones_like(y)


class Circle(Never):
    sde_type = "stratonovich"


def never(x, t):
    raise AssertionError("the model was called")


REVERSE = pf.ReverseSDE(PROCESS, pf.Model(never, PROCESS))


def solve(sde: Any = None, **how: Any) -> Callable[[], Any]:
    how = {"dt": 0.1, **how}
    return lambda: pf.sdeint(sde or Never(), Y0, [0.0, 1.0], **how)


def plan(**how: Any) -> Callable[[], Any]:
    how = {"dt": 0.1, "method": "accelerated-sde", **how}
    return lambda: pf.sdeint(REVERSE, Y0, [1.0, 0.5], **how)


def adjoint(options: Any = None, **how: Any) -> Callable[[], Any]:
    how = {"method": "euler", "adjoint_params": (), "adjoint_options": options, **how}
    return lambda: pf.sdeint_adjoint(Never(), Y0, [0.0, 1.0], **how)


def sampler(seed: Any) -> Callable[[], Any]:
    return lambda: pf.BrownianNoiseSampler(Y0, 0.1, 1.0, seed=seed)


def interval(**how: Any) -> Callable[[], Any]:
    return lambda: pf.BrownianInterval(0.0, 1.0, (2, 3), **how)


def tree(**how: Any) -> Callable[[], Any]:
    return lambda: pf.BrownianTree(0.0, Y0, **how)


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (solve(bm=lambda a, b: None, method="euler"), TypeError, "bm: must return tensors, returned N"),
    (solve(bm=lambda a, b: Y0[:1], method="euler"), ValueError, r"bm: .*\(2, 3\).*\(1, 3\)"),
    (solve(bm=lambda a, b, return_U: Y0), TypeError, "bm: must return W and the time integral U"),
    (plan(bm=lambda a, b: None), TypeError, "bm: must return a tensor, returned NoneType"),
    (
        solve(bm=lambda a, b: Y0),
        TypeError,
        r"bm: srk calls bm\(ta, tb, return_U=True\), but got an unexpected keyword",
    ),
    (solve(bm=lambda a: Y0, method="euler"), TypeError, r"bm: euler calls bm\(ta, tb\), but too"),
    (solve(method=3), TypeError, "method: need a name.* got 3"),
    (solve(options={"step_size": -1}), ValueError, "step_size: need a finite number > 0, got -1"),
    (plan(options={"step_size": -1}), ValueError, "step_size: need a finite number > 0, got -1"),
    (solve(options={"first_sample": -1}), ValueError, "first_sample: need a whole .* got -1"),
    (
        lambda: pf.sdeint(Never(), Y0, [0.0, 1.0, 0.5]),
        ValueError,
        r"ts: .*strictly increasing or decreasing, got \[0.0, 1.0, 0.5\]",
    ),
    (interval(halfway_tree=True), ValueError, "halfway_tree: needs tol > 0 and no dt"),
    (interval(halfway_tree=True, tol=0.1, dt=0.1), ValueError, "halfway_tree: .* dt=0.1"),
    (interval(halfway_tree="a"), TypeError, "halfway_tree: need True or False, got 'a'"),
    (interval(pool_size="a"), TypeError, "pool_size: need a whole number >= 4, got 'a'"),
    (interval(pool_size=-3), ValueError, "pool_size: need a whole number >= 4, got -3"),
    (interval(dtype="float"), ValueError, "dtype: need a dtype, .* got 'float'"),
    (interval(device="foo"), ValueError, "device: need one of torch's, got 'foo': "),
    (lambda: pf.BrownianPath(0.0, Y0, "a"), TypeError, "window_size: need a whole .* got 'a'"),
    (tree(cache_depth="x"), TypeError, "cache_depth: need a whole number .* got 'x'"),
    (tree(pool_size="x"), TypeError, "pool_size: need a whole number .* got 'x'"),
    (tree(safety="x"), TypeError, "safety: need a number, got 'x'"),
    (tree(w1=Y0[:1]), ValueError, r"w1: need shape, dtype and device of w0, .*got \(\(1, 3\)"),
    (tree(w1=Y0.double()), ValueError, "w1: need .* torch.float64"),
    (lambda: pf.ReverseBrownian(3), TypeError, "base_brownian: need a Brownian motion, got 3"),
    (lambda: pf.brownian_interval_like(3), TypeError, "y: need a floating-point tensor, got int"),
    (lambda: pf.BrownianNoiseSampler(Y0, "a", 1.0), TypeError, "sigma_min: need a num.* got 'a'"),
    (lambda: pf.BrownianNoiseSampler(Y0, 0.1, "a"), TypeError, "sigma_max: need a num.* got 'a'"),
    (lambda: sampler(0)()("a", 1.0), TypeError, "sigma: need a number .* got 'a'"),
    (lambda: sampler(0)()(1.0, "a"), TypeError, "sigma_next: need a number .* got 'a'"),
    (
        lambda: pf.BrownianNoiseSampler(Y0, 0.1, 1.0, transform=3),
        TypeError,
        "transform: need a function, got 3",
    ),
    (
        lambda: pf.BrownianNoiseSampler(Y0, 0.1, 0.1),
        ValueError,
        "sigma_min, sigma_max: need two levels .* got 0.1 and 0.1",
    ),
    (
        solve(Circle(), method="reversible_heun", extra_solver_state=3),
        TypeError,
        "extra_solver_state: need a tuple of tensors, got 3",
    ),
    (
        solve(dt=1e-20),
        ValueError,
        r"dt: steps of 1e-20 from 0 to 1 would be 1e\+20; at most 1e\+09",
    ),
    (plan(dt=1e-20), ValueError, r"dt: steps of 1e-20 .* would be 5e\+19"),
    (plan(options=3), TypeError, "options: need a dictionary"),
    (plan(options={"sed": 1}), ValueError, "has no option 'sed'; near names: seed"),
    (
        solve(adaptive=True, options={"check_finite": False}),
        ValueError,
        "check_finite=False does nothing with adaptive=True",
    ),
    (adjoint({"seed": 1}), ValueError, "^adjoint_options: .*no option 'seed'; allowed: grad_free"),
    (adjoint({"step_size": 0.1}), ValueError, "^adjoint_options: .*no option 'step_size'"),
    (adjoint({"grad_fre": False}), ValueError, "^adjoint_options: .*near names: grad_free"),
    (adjoint(3), TypeError, "^adjoint_options: need a dictionary"),
    (solve(names=["f"]), TypeError, r"^names: need a dictionary, got \['f'\]"),
    (
        solve(names={"drift": 3}),
        TypeError,
        "^names: need the name of a method for the drift, got 3",
    ),
    (adjoint(names=["f"]), TypeError, "^names: need a dictionary"),
    (adjoint(adjoint_params=3), TypeError, "^adjoint_params: need a sequence of tensors, got 3"),
    (adjoint(adjoint_params=["a"]), TypeError, "^adjoint_params: need a sequence of tensors"),
    (adjoint(adjoint_params=Y0), TypeError, "^adjoint_params: need a sequence of tensors"),
    (solve(options={"seed": "a"}), TypeError, "^seed: need a whole number in .*, got 'a'"),
    (solve(options={"seed": -1}), ValueError, "^seed: need a whole number"),
    (plan(options={"seed": "a"}), TypeError, "^seed: need a whole number in .*, got 'a'"),
    # Flags, and numbers without use
    *(
        (call(**{name: "no"}), TypeError, f"^{name}: need True or False, got 'no'")
        for call, names in {
            solve: ("adaptive", "logqp", "extra"),
            plan: ("adaptive", "logqp", "extra"),
            adjoint: ("adaptive", "adjoint_adaptive", "logqp", "extra"),
        }.items()
        for name in names
    ),
    (solve(options={"check_finite": "no"}), TypeError, "^check_finite: need True or False"),
    (plan(options={"check_finite": "no"}), TypeError, "^check_finite: need True or False"),
    (
        solve(method="milstein", options={"grad_free": "no"}),
        TypeError,
        "^grad_free: need True or False",
    ),
    (adjoint({"grad_free": "no"}), TypeError, "^grad_free: need True or False"),
    (solve(rtol=-1), ValueError, "^rtol: need a finite number >= 0"),
    (solve(rtol="a"), TypeError, "^rtol: need a number, got 'a'"),
    (solve(atol=math.nan), ValueError, "^atol: need a finite number >= 0"),
    (solve(dt_min="b"), TypeError, "^dt_min: need a number, got 'b'"),
    (solve(adaptive=True, rtol=0, atol=0), ValueError, "^rtol, atol: one of them must be pos"),
    (plan(rtol="a"), TypeError, "^rtol: need a number, got 'a'"),
    (adjoint(rtol=-1), ValueError, "^rtol: need a finite number >= 0"),
    (adjoint(adjoint_rtol="a"), TypeError, "^adjoint_rtol: need a number, got 'a'"),
    (adjoint(adjoint_atol=-1), ValueError, "^adjoint_atol: need a finite number >= 0"),
    # Brownian motions
    (lambda: pf.BrownianInterval(size=3), TypeError, r"size: need a shape \(batch, ...\), got 3"),
    (lambda: pf.BrownianInterval(size=(3.0,)), TypeError, r"size: need a shape .*got \(3.0,\)"),
    (lambda: pf.BrownianInterval(size=(-3,)), ValueError, "size: need a shape of numbers >= 0"),
    (lambda: pf.BrownianInterval(size=(3,), dt=1e-20), ValueError, "dt: need at least 9.09e-13"),
    (sampler(torch.tensor([1, 2, 3])), ValueError, "seed: need .* one for each of 2 samples"),
    (sampler([1, "b"]), TypeError, "seed: need a whole number .*got 'b'"),
    (sampler(torch.tensor(1.5)), TypeError, "seed: need a whole number"),
    (sampler(np.array([1.0, 2.0])), TypeError, "seed: need a whole number"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_what_torchsde_raises_is_a_value_error_here_too() -> None:
    """Of another kind than is needed: a TypeError as well."""

    class Nothing:
        sde_type, noise_type = "ito", "diagonal"

    ts = [0.0, 1.0]
    for arguments in ((object(), Y0, ts), (Nothing(), Y0, ts), (Never(), [1.0], ts)):
        with pytest.raises(TypeError) as ours:
            pf.sdeint(*arguments)
        assert isinstance(ours.value, ValueError)
        with pytest.raises(ValueError):
            torchsde.sdeint(*arguments)
    for call, name in (
        (lambda library: library.sdeint(Never(), Y0, "now"), "ts"),
        (lambda library: library.BrownianInterval(t0="now", size=(2,)), "t0"),
        (lambda library: library.BrownianInterval(W=torch.ones(2, dtype=torch.int64)), "W"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: need a ") as ours:
            call(pf)
        assert isinstance(ours.value, TypeError)
        with pytest.raises(ValueError):
            call(torchsde)


@pytest.mark.parametrize("seed", [torch.tensor(3), np.int64(3), np.array(3)])
def test_a_seed_of_any_kind(seed: Any) -> None:
    assert torch.equal(sampler(seed)()(0.1, 0.5), sampler(3)()(0.1, 0.5))
    found = pf.sdeint(Decay(), Y0, [0.0, 1.0], dt=0.5, options={"seed": seed})
    assert torch.equal(found, pf.sdeint(Decay(), Y0, [0.0, 1.0], dt=0.5, options={"seed": 3}))


@pytest.mark.parametrize("kind", [torch.tensor, np.array, tuple])
def test_a_seed_for_each_sample(kind: Any) -> None:
    assert torch.equal(sampler(kind([3, 4]))()(0.1, 0.5), sampler([3, 4])()(0.1, 0.5))


def test_whole_times_as_in_torchsde() -> None:
    """Integer tensors are times for torchsde and for both routes of sdeint, not for torchdiffeq."""
    whole = torch.tensor([0, 1])
    assert torchsde.sdeint(Decay(), Y0, whole, dt=0.5, method="euler").shape == (2, 2, 3)
    found = pf.sdeint(Decay(), Y0, whole, dt=0.5, options={"seed": 0})
    assert torch.equal(found, pf.sdeint(Decay(), Y0, [0.0, 1.0], dt=0.5, options={"seed": 0}))
    process = pf.EDM()
    sde = pf.ReverseSDE(process, pf.Model(lambda x, t: x, process))
    how = {"method": "accelerated-sde", "options": {"seed": 0}, "dt": 0.5}
    ends = torch.tensor([3, 1])
    found = pf.sdeint(sde, Y0, ends, **how)
    assert torch.equal(found, pf.sdeint(sde, Y0, ends.double(), **how))


def test_a_motion_in_another_dtype() -> None:
    def bm(ta: float, tb: float) -> torch.Tensor:
        return torch.full((2, 3), tb - ta, dtype=torch.float64)

    assert pf.sdeint(Decay(), Y0, [0.0, 1.0], bm, "euler", 0.5).dtype is torch.float32
