"""Motions that are saved, used within transforms of torch.func, cut into chunks, or too short."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchsde

import probflow as pf


class Walk:
    sde_type, noise_type = "ito", "diagonal"

    def f(self, t, y):
        return torch.zeros_like(y)

    def g(self, t, y):
        return torch.ones_like(y)


def interval(**how: Any) -> pf.BrownianInterval:
    return pf.BrownianInterval(0.0, 1.0, size=(2, 3), entropy=0, **how)


def after(motion: Any, *times: float) -> Any:
    "The motion once some steps have been asked for."
    for a, b in pairwise(times):
        motion(a, b)
    return motion


def through_torch(motion: Any) -> Any:
    file = io.BytesIO()
    torch.save(motion, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


ZERO = torch.zeros(2, 3)
SAVED: dict[str, Callable[[], Any]] = {
    "fresh": interval,
    "asked": lambda: after(interval(), 0.0, 0.3, 0.9, 0.2),
    "mid-sweep": lambda: after(interval(dt=0.1), 0.0, 0.1, 0.2),
    "area": lambda: after(interval(dt=0.1, levy_area_approximation="foster"), 0.0, 0.1, 0.2),
    "path": lambda: after(pf.BrownianPath(0.0, ZERO, entropy=0), 0.0, 3.0, -2.0),
    "tree": lambda: after(pf.BrownianTree(0.0, ZERO, entropy=0), 0.0, 0.5),
    "reversed": lambda: pf.ReverseBrownian(pf.BrownianInterval(-1.0, 0.0, size=(2,), entropy=0)),
    "noise sampler": lambda: pf.BrownianNoiseSampler(ZERO, 0.1, 1.0, seed=[1, 2]),
}


@pytest.mark.parametrize("name", SAVED)
def test_motions_are_saved_and_copied(name):
    for copied in (through_torch, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        motion = SAVED[name]()
        other = copied(motion)
        for a, b in ((0.2, 0.3), (0.3, 0.4), (0.15, 0.85)):
            assert torch.equal(other(a, b), motion(a, b))


TRANSFORMED: dict[str, Callable[..., Any]] = {
    "jvp": lambda f, y: torch.func.jvp(f, (y,), (y,))[0],
    "grad": lambda f, y: torch.func.grad(lambda y: f(y).square().sum())(y) / 2,
    "vmap": lambda f, y: torch.func.vmap(f)(torch.stack([y] * 2))[1],
    "nested": lambda f, y: torch.func.vmap(lambda x: torch.func.jvp(f, (x,), (x,))[0])(y[None])[0],
}


@pytest.mark.parametrize("how", [{}, {"dt": 1 / 40}], ids=["random", "swept"])
@pytest.mark.parametrize("name", TRANSFORMED)
def test_motions_go_on_within_and_after_a_transform(name, how):
    # So large that a sweep has memory on which it writes again in later steps.
    y = torch.zeros(40, 3000)
    alone = pf.BrownianInterval(0.0, 1.0, size=(40, 3000), entropy=0, **how)

    def steps(motion: Any, first: int, last: int) -> Callable[..., Any]:
        return lambda y: y + sum(motion(k / 40, (k + 1) / 40) for k in range(first, last))

    motion = pf.BrownianInterval(0.0, 1.0, size=(40, 3000), entropy=0, **how)
    for first, transform in ((0, None), (3, TRANSFORMED[name]), (6, None)):
        f = steps(motion, first, first + 3)
        got = f(y) if transform is None else transform(f, y)
        torch.testing.assert_close(got, steps(alone, first, first + 3)(y))
    torch.save(motion, io.BytesIO())  # nothing of the transform is kept


@pytest.mark.parametrize("name", TRANSFORMED)
def test_a_motion_used_before_serves_a_run_within_a_transform(name):
    bm = interval(dt=0.1)

    def run(y: Any) -> Any:
        return pf.sdeint(Walk(), y, [0.0, 1.0], bm, method="euler", dt=0.1)[-1]

    want = run(ZERO)
    torch.testing.assert_close(TRANSFORMED[name](run, ZERO), want)
    assert torch.equal(run(ZERO), want)
    seeded = TRANSFORMED[name](
        lambda y: pf.sdeint(Walk(), y, [0.0, 1.0], dt=0.1, options={"seed": 0})[-1], ZERO
    )
    torch.testing.assert_close(
        seeded, pf.sdeint(Walk(), ZERO, [0.0, 1.0], dt=0.1, options={"seed": 0})[-1]
    )


def test_vmap_without_a_seed_is_refused_by_name():
    def run(y: Any) -> Any:
        return pf.sdeint(Walk(), y, [0.0, 1.0], dt=0.1)

    with pytest.raises(ValueError, match=r"seed: .*torch\.func\.vmap.*bm"):
        torch.func.vmap(run)(torch.zeros(4, 2, 3))


def test_fixed_ends_of_a_transform_are_refused():
    with pytest.raises(ValueError, match=r"W: .*transform of torch\.func"):
        torch.func.vmap(lambda w: pf.BrownianInterval(0.0, 1.0, entropy=0, W=w)(0.0, 0.5))(ZERO)


class Never(Walk):
    def f(self, t, y):
        raise AssertionError("the drift was called")

    g = f


def short(**how: Any) -> pf.BrownianInterval:
    return pf.BrownianInterval(0.0, 0.5, size=(2, 3), entropy=0, **how)


ENDS = r"bm: t: -?1 lies outside the motion's \[0, 0.5\]; ts needs "


@pytest.mark.parametrize("solve", [pf.sdeint, pf.sdeint_adjoint])
def test_a_motion_shorter_than_the_times_is_refused_before_any_call(solve):
    how: dict[str, Any] = {"method": "euler", "dt": 0.1}
    if solve is pf.sdeint_adjoint:
        how["adjoint_params"] = ()
    for ts in ([0.0, 1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match=ENDS + r"it from 0 to 1, .*BrownianInterval\(0, 1,"):
            solve(Never(), ZERO, ts, short(), **how)
        tree = pf.BrownianTree(0.0, ZERO, t1=0.5)
        with pytest.raises(ValueError, match=ENDS):
            solve(Never(), ZERO, ts, tree, **how)
    with pytest.raises(ValueError, match=ENDS + "it from -1 to 0"):
        solve(Never(), ZERO, [-1.0, 0.0], pf.ReverseBrownian(short()), **how)
    theirs = pf.ReverseBrownian(torchsde.BrownianInterval(0.0, 1.0, size=(2, 3)))
    assert solve(Walk(), ZERO, [-1.0, 0.0], theirs, **how).shape == (2, 2, 3)
    path = pf.BrownianPath(0.3, ZERO, entropy=0)  # has no ends
    assert solve(Walk(), ZERO, [0.0, 3.0], path, **how).shape == (2, 2, 3)


def test_a_short_motion_of_a_reverse_sde_is_refused():
    process = pf.VP.linear()

    def model(x: Any, t: Any) -> Any:
        raise AssertionError("the model was called")

    sde = pf.ReverseSDE(process, pf.Model(model, process))
    for method in ("euler", "ddpm"):
        with pytest.raises(ValueError, match=r"bm: t: -1 lies.*; ts needs s = -t from -1 to -0.5"):
            pf.sdeint(sde, ZERO, [1.0, 0.5], short(), method=method, dt=0.1)


def test_rows_of_a_batch_are_those_of_its_chunks():
    whole, part = torch.randn(5, 3), {"entropy": 3, "first_sample": 2}
    for kind in (pf.BrownianPath, pf.BrownianTree):
        full, chunk = kind(0.0, whole, entropy=3), kind(0.0, whole[2:4], **part)
        for a, b in ((0.1, 0.2), (0.3, 0.9)):
            torch.testing.assert_close(chunk(a, b), full(a, b)[2:4])
        torch.testing.assert_close(chunk(0.7), full(0.7)[2:4])
    process = pf.VP.linear()
    reverse = pf.ReverseSDE(process, pf.Model(lambda x, t: 0.1 * x, process))
    runs: list[tuple[Any, Any, list[float], str | None, dict[str, Any]]] = [
        (pf.sdeint, Walk(), [0.0, 1.0], "euler", {}),
        (pf.sdeint, Walk(), [0.0, 1.0], "srk", {}),
        (pf.sdeint_adjoint, Walk(), [1.0, 0.0], "euler", {"adjoint_params": ()}),
        (pf.sdeint, reverse, [1.0, 0.5], "euler", {}),
        (pf.sdeint, reverse, [1.0, 0.5], "ddpm", {}),
    ]
    for solve, sde, ts, method, how in runs:
        seed: dict[str, Any] = {"seed": 7}
        full = solve(sde, whole, ts, method=method, dt=0.1, options=seed, **how)
        seed["first_sample"] = 2
        chunk = solve(sde, whole[2:4], ts, method=method, dt=0.1, options=seed, **how)
        torch.testing.assert_close(chunk, full[:, 2:4])
        how.update(method=method, dt=0.1, options={"first_sample": 2})
        with pytest.raises(ValueError, match="bm, first_sample: give one of them"):
            solve(sde, whole, ts, lambda a, b: whole, **how)


def test_the_sample_of_nan_is_named():
    class Broken(Walk):
        def f(self, t, y):
            return torch.where(y == 5.0, torch.nan, 0.0)

        def g(self, t, y):
            return torch.zeros_like(y)

    y0 = torch.tensor([[0.0], [5.0], [5.0]])
    with pytest.raises(pf.NonFiniteError, match=r"in the drift f at step 0 .*, sample 1$"):
        pf.sdeint(Broken(), y0, [0.0, 1.0], dt=0.1)
    with pytest.raises(pf.NonFiniteError, match=r"adaptive step from t = 0 .*, sample 1$"):
        pf.sdeint(Broken(), y0, [0.0, 1.0], dt=0.1, adaptive=True, dt_min=0.01)
    with pytest.raises(pf.NonFiniteError, match=r"initial state y0, sample 2$"):
        pf.sdeint(Walk(), torch.tensor([[0.0], [0.0], [torch.inf]]), [0.0, 1.0], dt=0.1)


def test_settings_have_the_name_of_torchsde():
    assert pf.settings.METHODS.srk == "srk"
