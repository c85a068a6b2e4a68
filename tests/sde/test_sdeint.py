"""``sdeint``: times and outputs, shapes, seeds, failures and messages."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torchsde
from sde_examples import DOUBLE, Commutative, FinePath, Geometric, Ornstein, Rotation, Sine
from sde_examples import start_of as start

import probflow as pf
from probflow.sde.loop import step_grid

STRATONOVICH = ("milstein", "heun", "euler_heun", "midpoint", "reversible_heun", "log_ode")


class Plain:
    """f = -y, g = 1 for components: an Ito SDE with diagonal noise, no module."""

    sde_type, noise_type = "ito", "diagonal"

    def __init__(self, f=None, g=None, **words) -> None:
        self.f = f or (lambda t, y: -y)
        self.g = g or (lambda t, y: torch.ones_like(y))
        for name, word in words.items():
            setattr(self, name, word)


@pytest.fixture
def y0() -> torch.Tensor:
    return torch.randn(5, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


# Times ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [50, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_no_step_is_made_of_rounding_errors(steps: int, dtype: torch.dtype) -> None:
    calls = []

    def drift(t, y):
        calls.append(float(t))
        return -y

    ts = torch.tensor([0.0, 1.0], dtype=dtype)
    pf.sdeint(Plain(drift), torch.ones(2, 1), ts, method="euler", dt=torch.tensor(1 / steps))
    assert len(calls) == steps
    calls.clear()
    many = torch.linspace(0, 1, 11, dtype=dtype)
    pf.sdeint(Plain(drift), torch.ones(2, 1), many, method="euler", dt=0.1)
    assert len(calls) == 10


def test_steps_count_from_the_first_time_and_end_at_every_output() -> None:
    assert step_grid([0.0, 0.25, 1.0], 0.375) == [0.0, 0.25, 0.375, 0.75, 1.0]
    assert step_grid([1.0, 2.0], 5.0) == [1.0, 2.0]
    assert step_grid([0.0, 1.0, 2.0], 0.5) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert step_grid([0.0, 0.1, 0.2], 1.0) == [0.0, 0.1, 0.2]


def test_outputs_between_steps_have_the_right_variance() -> None:
    """torchsde interpolates linearly there: 0.025 instead of 0.05."""
    sde = Plain(lambda t, y: torch.zeros_like(y))
    y0 = torch.zeros(40000, 1, dtype=DOUBLE)
    ys = pf.sdeint(sde, y0, [0.0, 0.05, 0.12, 1.0], None, "euler", 0.1, options={"seed": 0})
    for y, t in zip(ys[1:], (0.05, 0.12, 1.0), strict=True):
        # The standard error of a variance of normals is sqrt(2 / n) of it: 0.7%.
        assert float(y.var()) == pytest.approx(t, rel=4.0 * math.sqrt(2.0 / 40000))
    covariance = float((ys[1] * ys[2]).mean())
    assert covariance == pytest.approx(0.05, abs=4.0 * math.sqrt(2.0 * 0.05 * 0.12 / 40000))


def test_outputs_lie_on_the_path(y0: torch.Tensor) -> None:
    path = FinePath(5, 2)
    sde = Plain(lambda t, y: torch.zeros_like(y))
    ys = pf.sdeint(sde, y0, [0.0, 0.125, 0.375, 1.0], path, "euler", 0.25)
    for y, t in zip(ys, (0.0, 0.125, 0.375, 1.0), strict=True):
        torch.testing.assert_close(y, y0 + path(0.0, t))


@pytest.mark.parametrize("ts", [[0, 1, 2], (0.0, 1.0, 2.0), torch.arange(3), torch.arange(3.0)])
def test_kinds_of_times(ts, y0: torch.Tensor) -> None:
    assert pf.sdeint(Plain(), y0, ts, dt=0.5).shape == (3, 5, 2)
    assert torch.equal(pf.sdeint(Plain(), y0, ts[:1]), y0[None])


def test_without_dt_the_times_are_the_grid(y0: torch.Tensor) -> None:
    ts, path = [0.0, 0.25, 0.75, 1.0], FinePath(5, 2)
    coarse = pf.sdeint(Plain(), y0, ts, path, "euler", None)
    y = y0
    for k in range(3):
        y = y - (ts[k + 1] - ts[k]) * y + path(ts[k], ts[k + 1])
        torch.testing.assert_close(coarse[k + 1], y)


def test_times_reach_the_functions_as_0d_tensors_of_at_least_float32() -> None:
    seen = set()

    def drift(t, y):
        seen.add((t.dtype, t.ndim, y.dtype))
        return -y

    for dtype in (torch.bfloat16, torch.float32, DOUBLE):
        y = torch.ones(2, 3, dtype=dtype)
        assert pf.sdeint(Plain(drift), y, [0.0, 1.0], dt=0.5).dtype == dtype
    assert seen == {
        (torch.float32, 0, torch.bfloat16),
        (torch.float32, 0, torch.float32),
        (DOUBLE, 0, DOUBLE),
    }


def test_half_precision_is_carried_in_float32() -> None:
    y0, bm = torch.ones(4, 3), pf.BrownianInterval(0.0, 1.0, (4, 3), entropy=0, dt=1e-3)
    exact = pf.sdeint(Plain(), y0, [0.0, 1.0], bm, "euler", 1e-3)[-1]
    half = pf.sdeint(Plain(), y0.bfloat16(), [0.0, 1.0], bm, "euler", 1e-3)[-1]
    assert (half.float() - exact).abs().max() < 0.02  # bfloat16 has 8 bits


# Backward in time -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", STRATONOVICH)
def test_decreasing_times_retrace_a_stratonovich_path(method: str) -> None:
    sde, path = (Rotation if method == "log_ode" else Geometric)("stratonovich"), FinePath(64, 2)
    y0 = start(sde, 64)
    gaps = []
    for dt in (1 / 16, 1 / 256):
        end = pf.sdeint(sde, y0, [0.0, 1.0], path, method, dt)[-1]
        back = pf.sdeint(sde, end, [1.0, 0.3125, 0.0], path, method, dt)
        assert back.shape == (3, 64, 2)
        gaps.append(float((back[-1] - y0).square().mean().sqrt()))
    assert gaps[1] < gaps[0] / 8.0  # order 1 promises 16


def test_decreasing_times_of_an_ito_sde_are_a_backward_integral(y0: torch.Tensor) -> None:
    path, h = FinePath(5, 2), 0.25
    sde = Plain(lambda t, y: torch.cos(t) * y, lambda t, y: 0.3 * y + t)
    y, states = y0, [y0]
    for k in (4, 3, 2, 1):
        t = torch.tensor(k * h, dtype=DOUBLE)
        y = y - h * sde.f(t, y) - sde.g(t, y) * path((k - 1) * h, k * h)
        states.append(y)
    ys = pf.sdeint(sde, y0, [1.0, 0.75, 0.5, 0.25, 0.0], path, "euler", h)
    torch.testing.assert_close(ys, torch.stack(states))
    # The law is that of the SDE in s = -t: higher orders agree with Euler in the limit.
    fine = [pf.sdeint(sde, y0, [1.0, 0.0], path, m, 2.0**-10)[-1] for m in ("euler", "srk")]
    coarse = pf.sdeint(sde, y0, [1.0, 0.0], path, "srk", 2.0**-4)[-1]
    assert (fine[0] - fine[1]).abs().max() < 0.05
    assert (coarse - fine[1]).abs().max() < 0.02


def test_default_noise_of_decreasing_times(y0: torch.Tensor) -> None:
    runs = [
        pf.sdeint(Plain(), y0, ts, method="srk", dt=0.1, options={"seed": 3})[-1]
        for ts in ([1.0, 0.0], [1.0, 0.5, 0.0])
    ]
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-9)


# Shapes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 8, 8)])
@pytest.mark.parametrize("noise", ["diagonal", "scalar", "additive", "general"])
@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
def test_states_of_any_shape(shape, noise: str, sde_type: str) -> None:
    """A state of any shape is the same as the flat state (torchsde's two axes)."""
    noises = {"scalar": 1}.get(noise, 2)
    generator = torch.Generator().manual_seed(0)
    y0 = torch.randn(shape, generator=generator, dtype=DOUBLE)
    weights = torch.randn(*shape[1:], noises, generator=generator, dtype=DOUBLE)

    def flat_sde(shape, weights):
        def g(t, y):
            if noise == "diagonal":
                return torch.cos(y)
            if noise == "additive":
                return weights.expand(*y.shape, noises)
            return torch.cos(y)[..., None] * weights

        return Plain(lambda t, y: torch.sin(t) - y, g, sde_type=sde_type, noise_type=noise)

    flat = (4, math.prod(shape[1:]))
    size = flat if noise == "diagonal" else (4, noises)
    motion = torchsde.BrownianInterval(
        0.0, 1.0, size, DOUBLE, entropy=1, levy_area_approximation="foster", dt=0.125
    )

    def as_image(ta, tb, **wanted):
        found = motion(ta, tb, **wanted)
        if noise != "diagonal":
            return found
        return tuple(x.reshape(shape) for x in found) if wanted else found.reshape(shape)

    methods = STRATONOVICH if sde_type == "stratonovich" else ("euler", "milstein", "srk")
    for method in methods:
        if noise == "general" and method in ("milstein", "srk"):
            continue
        if noise == "general" or noise == "additive":
            as_image.shape = size
        for options in (None, {"grad_free": True}) if method == "milstein" else (None,):
            arguments = ([0.0, 1.0], as_image, method, 0.125)
            got = pf.sdeint(flat_sde(shape, weights), y0, *arguments, options=options)
            assert got.shape == (2, *shape)
            plain = flat_sde(flat, weights.reshape(-1, noises))
            arguments = ([0.0, 1.0], motion, method, 0.125)
            wanted = pf.sdeint(plain, y0.reshape(flat), *arguments, options=options)
            torch.testing.assert_close(got, wanted.reshape(got.shape))


def test_log_ratio_of_images() -> None:
    y0 = torch.randn(3, 2, 4, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    sde = Plain(lambda t, y: 2.0 - y, lambda t, y: 0.5 + 0 * y, h=lambda t, y: -y)
    ys, ratio = pf.sdeint(sde, y0, [0.0, 0.5, 1.0], dt=0.1, logqp=True)
    assert ys.shape == (3, 3, 2, 4, 4)
    # u = (f - h) / g = 4 everywhere: half of 16 for each of 32 components and unit of time.
    torch.testing.assert_close(ratio, torch.full((2, 3), 0.5 * 16.0 * 32 * 0.5, dtype=DOUBLE))


@pytest.mark.parametrize("noise", ["diagonal", "scalar", "additive", "general"])
def test_log_ratio_of_numbers(noise: str) -> None:
    """States (batch,) are those of (batch, 1) without their axis."""

    def run(*more: int) -> tuple[torch.Tensor, torch.Tensor]:
        sde = Plain(lambda t, y: -y, lambda t, y: columns(1.5 + torch.sin(y)), noise_type=noise)
        sde.h = lambda t, y: torch.cos(y)
        y0 = torch.linspace(0.0, 1.0, 4, dtype=DOUBLE).reshape(4, *more)
        bm = pf.BrownianInterval(
            0.0, 1.0, (4, *more) if noise == "diagonal" else (4, 1), DOUBLE, entropy=1
        )
        return pf.sdeint(sde, y0, [0.0, 0.4, 1.0], bm, "euler", 0.25, logqp=True)

    def columns(g: torch.Tensor) -> torch.Tensor:
        return g if noise == "diagonal" else torch.ones_like(g)[..., None]

    (ys, ratio), (wanted, its) = run(), run(1)
    torch.testing.assert_close(ys, wanted[..., 0])
    torch.testing.assert_close(ratio, its)


@pytest.mark.parametrize("sde", [Geometric, Sine, Ornstein, Commutative])
def test_a_sample_does_not_depend_on_the_batch(sde) -> None:
    kind = sde("ito")
    y0 = start(kind, 8) + 0.1 * torch.arange(8, dtype=DOUBLE)[:, None]
    options = {"seed": 7}
    whole = pf.sdeint(kind, y0, [0.0, 1.0], dt=0.25, options=options)
    part = pf.sdeint(kind, y0[:3], [0.0, 1.0], dt=0.25, options=options)
    torch.testing.assert_close(part, whole[:, :3], rtol=1e-12, atol=1e-12)


def test_functions_in_any_form_give_the_same_states(y0: torch.Tensor) -> None:
    path = FinePath(5, 2)
    whole = Commutative("stratonovich")
    f, g = whole.f, whole.g

    def prod(t, y, v):
        return (g(t, y) @ v[..., None])[..., 0]

    forms = [
        {"f_and_g": lambda t, y: (f(t, y), g(t, y))},
        {"f": f, "g_prod": prod},
        {"f_and_g_prod": lambda t, y, v: (f(t, y), prod(t, y, v))},
        {"f": f, "g": g, "g_prod": prod},
    ]
    words = {"sde_type": "stratonovich", "noise_type": "general"}
    for method in ("midpoint", "heun", "euler_heun"):
        wanted = pf.sdeint(whole, y0, [0.0, 1.0], path, method, 0.25)
        for form in forms:
            sde = type("Form", (), {k: staticmethod(v) for k, v in form.items()} | words)()
            got = pf.sdeint(sde, y0, [0.0, 1.0], path, method, 0.25)
            torch.testing.assert_close(got, wanted)
    names = {"drift": "a", "diffusion": "b", "prior_drift": "c"}
    renamed = type("Renamed", (), {"a": staticmethod(f), "b": staticmethod(g), "c": 1} | words)()
    renamed.c = f
    got = pf.sdeint(renamed, y0, [0.0, 1.0], path, "midpoint", 0.25, names=names)
    torch.testing.assert_close(got, pf.sdeint(whole, y0, [0.0, 1.0], path, "midpoint", 0.25))


# Noise ------------------------------------------------------------------------------------------


def test_seeds(y0: torch.Tensor) -> None:
    def run(**options):
        return pf.sdeint(Plain(), y0, [0.0, 1.0], dt=0.1, options=options)

    assert torch.equal(run(seed=3), run(seed=3))
    assert not torch.equal(run(seed=3), run(seed=4))
    torch.manual_seed(0)
    first, second = run(), run()
    torch.manual_seed(0)
    assert torch.equal(run(), first)
    assert not torch.equal(first, second)


def test_one_seed_is_one_path_for_doubled_steps() -> None:
    sde, y0 = Geometric("ito"), start(Geometric(), 64)
    ends = [
        pf.sdeint(sde, y0, [0.0, 0.6], method="srk", dt=0.3 * 2.0**-k, options={"seed": 0})[-1]
        for k in (3, 5, 7)
    ]
    assert (ends[1] - ends[2]).abs().mean() < 0.3 * (ends[0] - ends[2]).abs().mean()


# Failures ---------------------------------------------------------------------------------------


def bad_after(limit: float, value: float = math.nan):
    return lambda t, y: torch.where(t > limit, value, -1.0) * y


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_a_bad_drift_is_located(method: str, y0: torch.Tensor) -> None:
    with pytest.raises(
        pf.NonFiniteError, match=rf"^{method}: .*at step \d of 10, from t = 0\.[45]"
    ):
        pf.sdeint(Plain(bad_after(0.45)), y0, [0.0, 1.0], None, method, 0.1)


def test_what_is_not_finite(y0: torch.Tensor) -> None:
    times = [0.0, 1.0]
    with pytest.raises(
        pf.NonFiniteError, match=r"the drift f at step 5 of 10, from t = 0.5 to 0.6"
    ):
        pf.sdeint(Plain(bad_after(0.45)), y0, times, None, "euler", 0.1)
    with pytest.raises(pf.NonFiniteError, match=r"the diffusion g at step 5"):
        pf.sdeint(Plain(None, bad_after(0.45, math.inf)), y0, times, None, "euler", 0.1)
    with pytest.raises(pf.NonFiniteError, match="initial state y0"):
        pf.sdeint(Plain(), y0 * math.nan, times, dt=0.1)
    with pytest.raises(pf.NonFiniteError, match="the state, though"):
        pf.sdeint(Plain(lambda t, y: 1e308 + 0 * y), y0 * 0 + 1.7e308, times, None, "euler", 1.0)
    backward = Plain(lambda t, y: torch.where(t < 0.65, math.nan, 1.0) * y)
    with pytest.raises(pf.NonFiniteError, match=r"step 4 of 10, from t = 0.6 to 0.5"):
        pf.sdeint(backward, y0, [1.0, 0.0], None, "euler", 0.1)
    bad = pf.sdeint(
        Plain(bad_after(0.4)), y0, times, None, "euler", 0.1, options={"check_finite": False}
    )
    assert bad[-1].isnan().all()
    calls = []

    def moody(t, y):
        calls.append(1)
        return y * (math.nan if len(calls) == 3 else 1.0)

    with pytest.raises(pf.NonFiniteError, match="not a function of its arguments"):
        pf.sdeint(Plain(moody), y0, times, None, "euler", 0.25)


# Messages ---------------------------------------------------------------------------------------

BAD_ARGUMENTS = [
    ({"method": "milsten"}, ValueError, r"neither probflow nor torchsde.*near names: milstein"),
    ({"method": "heun"}, ValueError, "heun does not integrate ito SDEs with diagonal noise; .*srk"),
    ({"dt": -0.1}, ValueError, "dt: need a finite number > 0, got -0.1"),
    ({"dt": "x"}, TypeError, "dt: need a number, got 'x'"),
    ({"dt": torch.tensor(0.1, requires_grad=True)}, ValueError, "dt: must not require gradients"),
    ({"rtol": -1, "adaptive": True}, ValueError, "rtol: need a finite number >= 0"),
    ({"atol": 0, "rtol": 0, "adaptive": True}, ValueError, "rtol, atol: one of them"),
    ({"dt_min": -1, "adaptive": True}, ValueError, "dt_min: need a finite number >= 0"),
    (
        {"options": {"sed": 1}},
        ValueError,
        r"no option 'sed'; near names: seed.*allowed: seed, first_sample",
    ),
    ({"options": {"grad_free": True}}, ValueError, "srk has no option 'grad_free'"),
    ({"options": [1]}, TypeError, r"options: need a dictionary, got \[1\]"),
    ({"names": {"drft": "f"}}, ValueError, r"names: 'drft' is no role .*near names: drift"),
    ({"names": {"drift": "q"}}, ValueError, "names: Plain has no method 'q' for the drift"),
    ({"logqp": True}, ValueError, "logqp: needs .* prior drift h"),
    ({"extra_solver_state": (1,)}, ValueError, "extra_solver_state: srk has no extra state"),
    ({"bm": 3}, TypeError, r"bm: need a Brownian motion bm\(ta, tb\), got int"),
    (
        {"bm": FinePath(5, 3)},
        ValueError,
        r"bm: has shape \(5, 3\), the noise of this SDE \(5, 2\)",
    ),
    (
        {"bm": pf.BrownianInterval(0.0, 1.0, (5, 2))},
        ValueError,
        "bm: srk needs the time integral U; .*'space-time' or .*got 'none'",
    ),
    ({"bm": FinePath(5, 2), "options": {"seed": 1}}, ValueError, "bm, seed: give one"),
    ({"ts": [0.0, 0.5, 0.2]}, ValueError, "ts: times must be finite and strictly"),
    ({"ts": [[0.0, 0.5]]}, ValueError, "ts: need at least one time in one dimension"),
    ({"ts": "now"}, TypeError, "ts: need a 1-D tensor"),
    ({"ts": torch.tensor([0.0, 1.0], requires_grad=True)}, ValueError, "ts: must not require"),
    ({"y0": [1.0]}, TypeError, "y0: need a tensor, got list"),
    ({"y0": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "y0: need a real floating-point"),
    ({"y0": torch.tensor(1.0)}, TypeError, "y0: need a real floating-point tensor"),
    ({"options": {"seed": 0.5}}, TypeError, "need a whole number"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD_ARGUMENTS)
def test_bad_arguments(arguments: dict, kind: type, message: str, y0: torch.Tensor) -> None:
    def drift(t, y):
        raise AssertionError("the model was called")

    given = {"y0": y0, "ts": [0.0, 1.0]} | arguments
    with pytest.raises(kind, match=message):
        pf.sdeint(Plain(drift), **given)


BAD_SDES = [
    (Plain(noise_type="diag"), ValueError, "sde.noise_type: need one of .*got 'diag'"),
    (Plain(sde_type="strat"), ValueError, "sde.sde_type: need one of ito, strat.*got 'strat'"),
    (3, TypeError, "sde: int has no attribute noise_type"),
    (Plain(lambda t, y: y[:, :1]), ValueError, r"the drift f must have shape \(5, 2\), got \(5, 1"),
    (Plain(lambda t, y: 1.0), TypeError, "the drift f must be a tensor, got float"),
    (Plain(lambda t, y: y * 1j), ValueError, "the drift f must be real, .* got torch.complex128"),
    (Plain(None, lambda t, y: y[..., None]), ValueError, r"the diffusion g must have shape \(5, 2"),
    (
        Plain(None, lambda t, y: y, noise_type="general"),
        ValueError,
        r"g must have shape \(5, 2, m\), got \(5, 2\)",
    ),
    (
        Plain(None, lambda t, y: y[..., None].expand(5, 2, 3), noise_type="scalar"),
        ValueError,
        r"g must have shape \(5, 2, 1\), got \(5, 2, 3\)",
    ),
    (
        Plain(f_and_g=lambda t, y: y),
        TypeError,
        "f_and_g must return two tensors",
    ),
]


@pytest.mark.parametrize(("sde", "kind", "message"), BAD_SDES)
def test_bad_sdes(sde, kind: type, message: str, y0: torch.Tensor) -> None:
    with pytest.raises(kind, match=message):
        pf.sdeint(sde, y0, [0.0, 1.0], dt=0.5)


def test_objects_without_the_functions(y0: torch.Tensor) -> None:
    class Empty:
        sde_type, noise_type = "ito", "general"

    with pytest.raises(TypeError, match="sde: Empty has no drift"):
        pf.sdeint(Empty(), y0, [0.0, 1.0])
    Empty.f = lambda self, t, y: y
    with pytest.raises(TypeError, match="sde: Empty has no diffusion"):
        pf.sdeint(Empty(), y0, [0.0, 1.0])
    Empty.g_prod = lambda self, t, y, v: y
    with pytest.raises(ValueError, match=r"bm: with g_prod .* number of noises is unknown"):
        pf.sdeint(Empty(), y0, [0.0, 1.0])
    assert pf.sdeint(Empty(), y0, [0.0, 1.0], FinePath(5, 3), dt=0.5).shape == (2, 5, 2)
    Empty.sde_type = "stratonovich"
    with pytest.raises(TypeError, match="needs the function g; the object has f, g_prod"):
        pf.sdeint(Empty(), y0, [0.0, 1.0], FinePath(5, 3), "log_ode", 0.5)
    with pytest.raises(ValueError, match=r"bm: has shape \(4, 3\); for general .*\(5, m\)"):
        pf.sdeint(Empty(), y0, [0.0, 1.0], FinePath(4, 3))
    with pytest.raises(ValueError, match="extra_solver_state: reversible_heun needs three tensors"):
        pf.sdeint(
            Plain(sde_type="stratonovich"),
            y0,
            [0.0, 1.0],
            method="reversible_heun",
            extra_solver_state=(y0,),
        )


@pytest.mark.parametrize("noise", ["diagonal", "general"])
@pytest.mark.parametrize("logqp", [False, True])
def test_memory_of_another_form_is_refused(noise: str, logqp: bool) -> None:
    class Latent:
        sde_type, noise_type = "stratonovich", noise

        def f(self, t, y):
            return -y

        h = f

        def g(self, t, y):
            return torch.ones_like(y) if noise == "diagonal" else torch.ones(*y.shape, 3)

    arguments = (Latent(), torch.ones(2, 3), [0.0, 1.0], None, "reversible_heun", 0.5)
    *_, memory = pf.sdeint(*arguments, logqp=logqp, extra=True)
    pf.sdeint(*arguments, logqp=logqp, extra_solver_state=memory)
    for k, part in enumerate("fgz"):
        for wrong in (memory[k][:1], memory[k].sum(-1), memory[k].double(), memory[k].to("meta")):
            bad = (*memory[:k], wrong, *memory[k + 1 :])
            with pytest.raises(ValueError, match=f"extra_solver_state: {part} of reversible_heun"):
                pf.sdeint(*arguments, logqp=logqp, extra_solver_state=bad)


def test_levy_area_is_asked_for(y0: torch.Tensor) -> None:
    bm = pf.BrownianInterval(0.0, 1.0, (5, 2), levy_area_approximation="space-time")
    with pytest.raises(ValueError, match=r"bm: log_ode needs the Levy area A; .*'davie' or"):
        pf.sdeint(Rotation("stratonovich"), y0, [0.0, 1.0], bm, "log_ode")
    with pytest.raises(ValueError, match="bm: log_ode needs the Levy area A"):  # as torchsde's
        pf.sdeint(Plain(sde_type="stratonovich"), y0, [0.0, 1.0], bm, "log_ode")


# Adaptive steps ---------------------------------------------------------------------------------


ADAPTIVE = pytest.mark.parametrize(
    ("method", "sde_type"), [("milstein", "ito"), ("srk", "ito"), ("heun", "stratonovich")]
)


@ADAPTIVE
def test_errors_of_embedded_estimates_are_proportional_to_the_tolerance(
    method: str, sde_type: str
) -> None:
    """The lower order is 1/2 below: its local error falls with h as the method's global one."""
    sde, y0 = Geometric(sde_type), start(Geometric(), 64)
    how = {"adaptive": True, "options": {"error_estimate": "embedded"}}
    errors = []
    for tolerance in (3e-2, 3e-3):
        squares = []
        for seed in range(4):
            bm = pf.BrownianInterval(
                size=(64, 2), dtype=DOUBLE, entropy=seed, levy_area_approximation="space-time"
            )
            ys = pf.sdeint(
                sde, y0, [0.0, 0.4, 1.0], bm, method, 0.3, rtol=tolerance, atol=tolerance, **how
            )
            squares.append((ys[-1] - sde.exact(y0, bm(0.0, 1.0))).square().mean())
        errors.append(float(torch.stack(squares).mean().sqrt()) / tolerance)
    assert 0.5 < errors[1] / errors[0] < 2.0


@ADAPTIVE
def test_adaptive_errors_fall_with_the_tolerance(method: str, sde_type: str) -> None:
    sde, y0 = Geometric(sde_type), start(Geometric(), 64)
    bm = pf.BrownianInterval(
        0.0, 1.0, (64, 2), DOUBLE, entropy=0, tol=1e-6, levy_area_approximation="space-time"
    )
    exact = sde.exact(y0, bm(0.0, 1.0))
    errors = []
    for tolerance in (1e-2, 1e-3, 1e-4):
        ys = pf.sdeint(sde, y0, [0.0, 0.4, 1.0], bm, method, 0.3, True, tolerance, tolerance)
        errors.append(float((ys[-1] - exact).square().mean().sqrt()))
    # Local errors of order p + 1/2 within the tolerance: global ones as its power p / (p + 1/2), a
    # factor 4.6 (p = 1) or 5.6 (p = 3/2) for each 10.
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.5 * errors[1]


@pytest.mark.parametrize("estimate", ["halves", pytest.param("embedded", marks=pytest.mark.slow)])
def test_adaptive_steps_do_not_bias_the_law(estimate: str) -> None:
    """Each sample alone, so that rejections follow its own path; mean and second moment."""
    sde, count = Geometric("ito"), 150
    ends = torch.stack(
        [
            pf.sdeint(
                sde,
                torch.ones(1, 2, dtype=DOUBLE),
                [0.0, 1.0],
                None,
                "milstein",
                0.5,
                True,
                1e-2,
                1e-2,
                options={"seed": seed, "error_estimate": estimate},
            )[-1, 0]
            for seed in range(count)
        ]
    )
    # 99.9% of normal means lie within 3.3 standard errors; the tolerance allows a bias of 1%.
    for x, exact in ((ends[:, 0], math.exp(0.62)), (ends[:, 1], math.exp(0.48))):
        allowed = 3.3 * float(x.std()) / math.sqrt(count) + 0.01 * exact
        assert abs(float(x.mean()) - exact) < allowed


@pytest.mark.slow  # 5 minutes
@pytest.mark.parametrize(("method", "kind"), [("milstein", "ito"), ("heun", "stratonovich")])
def test_mean_errors_are_no_larger_than_those_of_fixed_steps(method: str, kind: str) -> None:
    """At the same number of evaluations of the drift, and they vanish with the tolerance."""
    y0, count = torch.ones(1, 2, dtype=DOUBLE), 400

    def mean_error(**settings) -> tuple[float, float, float]:
        calls, errors = [], []

        class Counted(Geometric):
            def drift(self, t, y):
                calls.append(t)
                return super().drift(t, y)

        sde = Counted(kind)
        for seed in range(count):
            bm = pf.BrownianInterval(0.0, 1.0, (1, 2), DOUBLE, entropy=seed)
            y = pf.sdeint(sde, y0, [0.0, 1.0], bm, method, **settings)[-1]
            errors.append(float((y - sde.exact(y0, bm(0.0, 1.0)))[0, 0]))
        x = torch.tensor(errors, dtype=DOUBLE)
        return float(x.mean()), float(x.std()) / math.sqrt(count), len(calls) / count

    adaptive = []
    for tolerance in (2e-2, 5e-3, 1e-3):
        error, uncertainty, calls = mean_error(
            dt=0.5, adaptive=True, rtol=tolerance, atol=tolerance
        )
        per_step = 1 if method == "milstein" else 2
        fixed, other, _ = mean_error(dt=1.0 / round(calls / per_step))
        assert abs(error) < 1.25 * abs(fixed) + 3.3 * math.hypot(uncertainty, other)
        adaptive.append(abs(error))
    assert adaptive[1] < 0.6 * adaptive[0]
    assert adaptive[2] < 0.6 * adaptive[1]


def test_adaptive_steps_stay_inside_and_land_on_outputs(y0: torch.Tensor) -> None:
    calls, queries = [], []
    bm = pf.BrownianInterval(0.0, 1.0, (5, 2), DOUBLE, entropy=0)

    def motion(ta, tb):
        queries.append((ta, tb))
        return bm(ta, tb)

    def drift(t, y):
        calls.append(float(t))
        return -20.0 * y

    outputs = [0.0, 0.3, 0.35, 1.0]
    pf.sdeint(Plain(drift), y0, outputs, motion, "milstein", 0.5, True, 1e-2, 1e-2)
    assert 0.0 <= min(calls) <= max(calls) < 1.0
    ends = {tb for _, tb in queries}
    assert set(outputs[1:]) <= ends
    assert max(ends) == 1.0
    assert all(ta < tb for ta, tb in queries)


def test_smallest_step(y0: torch.Tensor) -> None:
    arguments = ([0.0, 1.0], None, "milstein", 0.5, True, 1e-9, 1e-9, 0.2)
    with pytest.warns(UserWarning, match=r"dt_min: \d of \d steps were accepted .* length 0.2 wi"):
        ys = pf.sdeint(Geometric(), y0, *arguments)
    assert ys.isfinite().all()
    with pytest.raises(pf.NonFiniteError, match=r"adaptive step from t = 0.*dt_min = 0.01"):
        pf.sdeint(
            Plain(bad_after(0.5)), y0, [0.0, 1.0], None, "milstein", 0.1, True, 0.1, 0.1, 0.01
        )


@pytest.mark.parametrize("method", ["milstein", "srk"])
def test_adaptive_steps_name_what_is_not_finite(method: str, y0: torch.Tensor) -> None:
    arguments = ([0.0, 1.0], None, method, 0.1, True)
    with pytest.raises(
        pf.NonFiniteError, match=f"^{method}: .* in the initial state y0, sample 1$"
    ):
        pf.sdeint(Plain(), torch.where(y0 == y0[1, 0], math.nan, y0), *arguments)
    with pytest.raises(pf.NonFiniteError, match=r"adaptive step from t = 0\.5.*dt_min = 0\)"):
        pf.sdeint(Plain(bad_after(0.5)), y0, *arguments, dt_min=0.0)


def test_adaptive_euler_warns(y0: torch.Tensor) -> None:
    with pytest.warns(UserWarning, match="Euler-Maruyama need not converge .* diagonal noise"):
        pf.sdeint(Geometric(), y0, [0.0, 1.0], None, "euler", 0.1, True, 0.5, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pf.sdeint(Ornstein(), y0, [0.0, 1.0], None, "euler", 0.1, True, 0.5, 0.5)


# Transforms of torch.func ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options"), [("euler", {}), ("srk", {}), ("milstein", {"grad_free": True})]
)
def test_transforms_of_torch_func(method: str, options: dict) -> None:
    sde = Geometric("ito")

    def end(y: torch.Tensor) -> torch.Tensor:
        chosen = {**options, "seed": 0}
        return pf.sdeint(sde, y, [0.0, 1.0], method=method, dt=0.1, options=chosen)[-1]

    batch = torch.tensor([[[1.0, 0.7]], [[0.5, 2.0]]], dtype=DOUBLE)
    expected = torch.stack([end(y) for y in batch])
    torch.testing.assert_close(torch.func.vmap(end)(batch), expected, rtol=1e-12, atol=0)
    # The solution is a multiple of its start, and so it is its own derivative along that.
    value, tangent = torch.func.jvp(end, (batch[0],), (batch[0],))
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(tangent, expected[0], rtol=1e-9, atol=0)


def test_what_transforms_of_torch_func_cannot_do_is_refused() -> None:
    sde, y = Geometric("ito"), torch.ones(3, 1, 2, dtype=DOUBLE)

    def end(y: torch.Tensor, **settings) -> torch.Tensor:
        return pf.sdeint(sde, y, [0.0, 1.0], dt=0.1, options={"seed": 0}, **settings)[-1]

    with pytest.raises(ValueError, match=r"^method: its derivatives of the diffusion are not"):
        torch.func.vmap(lambda y: end(y, method="milstein"))(y)
    with pytest.raises(ValueError, match=r"^y0: under torch.func.vmap steps cannot depend"):
        torch.func.vmap(lambda y: end(y, method="srk", adaptive=True))(y)
    y, direction = y[0], torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    jacobian = torch.func.jacrev(lambda y: end(y, method="milstein"))(y)
    torch.testing.assert_close(
        jacobian[0, :, 0] @ direction[0], end(y, method="milstein")[0] * direction[0]
    )
