"""Models: prediction types, time conventions, conditioning, what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import probflow as pf
from probflow.plan import PREDICTIONS, Point, conversion, prediction_weights
from probflow.processes import Process

PROCESSES: dict[str, tuple[Process, list[float]]] = {
    "vp": (pf.VP.linear(), [1e-3, 0.3, 0.9, 1.0]),
    "cosine": (pf.VP.cosine(), [1e-3, 0.3, 0.9946]),
    "discrete": (pf.VP.from_betas(np.linspace(1e-4, 0.02, 1000)), [0.0, 10.5, 500.0, 998.5]),
    "ve": (pf.VE(), [0.0, 0.4, 1.0]),
    "edm": (pf.EDM(), [0.002, 1.0, 80.0]),
    "flow": (pf.FlowMatching(), [1e-3, 0.5, 0.999]),
}
PAIRS = list(itertools.product(PREDICTIONS, PREDICTIONS))
GENERATOR = torch.Generator().manual_seed(0)
X0 = torch.randn(4, 3, dtype=torch.float64, generator=GENERATOR)
EPS = torch.randn(4, 3, dtype=torch.float64, generator=GENERATOR)


def state(process: Process, t: float) -> Tensor:
    return process.alpha(t) * X0 + process.sigma(t) * EPS


def truth(process: Process, t: float, prediction: str) -> Tensor:
    """Each prediction type by its definition, for known x0 and eps."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    angle = np.arctan2(sigma, alpha)
    return {
        "eps": EPS,
        "x0": X0,
        "v": np.cos(angle) * EPS - np.sin(angle) * X0,
        "score": -EPS / sigma,
        "velocity": float(process.dalpha(t)) * X0 + float(process.dsigma(t)) * EPS,
    }[prediction]


def relative(value: Tensor, exact: Tensor, conditioning: float) -> float:
    return float((value - exact).abs().max() / exact.abs().max()) / max(1.0, conditioning)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("source", "wanted"), PAIRS)
def test_conversions_are_the_definitions(name: str, source: str, wanted: str) -> None:
    process, times = PROCESSES[name]
    for t in times:
        x = state(process, t)
        model = pf.Model(lambda x, _, p=source, t=t: truth(process, t, p), process, source)
        # Subtracting two numbers that nearly cancel costs the digits that the problem has not.
        c, d = conversion(process, source, wanted, Point.many(process, [t])[0])
        exact = truth(process, t, wanted)
        size = abs(c) * x.abs().max() + abs(d) * truth(process, t, source).abs().max()
        conditioning = float(size / exact.abs().max())
        for time in (
            t,
            torch.tensor(t, dtype=torch.float64),
            torch.full((4,), t, dtype=torch.float64),
        ):
            value = model.predict(x, time, wanted)
            assert value.dtype == torch.float64
            assert relative(value, exact, conditioning) < 1e-13, (t, conditioning)
        assert torch.equal(model.as_prediction(wanted)(x, t), model.predict(x, t, wanted))


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("source", "wanted"), PAIRS)
def test_conversions_round_trip(name: str, source: str, wanted: str) -> None:
    process, times = PROCESSES[name]
    for t in times:
        point = Point.many(process, [t])[0]
        c, d = map(float, conversion(process, source, wanted, point))
        back_c, back_d = map(float, conversion(process, wanted, source, point))
        # source = back_c x + back_d (c x + d source), as weights of x and of source.
        assert back_d * d == pytest.approx(1.0, rel=1e-12)
        assert back_c + back_d * c == pytest.approx(0.0, abs=1e-12 * max(1e-3, abs(back_c)))


@pytest.mark.parametrize("name", PROCESSES)
def test_half_way_conversion_of_models_of_models(name: str) -> None:
    process, times = PROCESSES[name]
    t = times[1]
    x = state(process, t)
    model = pf.Model(lambda x, _: truth(process, t, "eps"), process)
    for prediction in PREDICTIONS:
        again = model.as_prediction(prediction).as_prediction("eps")
        torch.testing.assert_close(again(x, t), EPS, rtol=1e-10, atol=1e-10)
    assert model.as_prediction("eps") is model


def test_flow_matching_velocity_is_eps_minus_x0() -> None:
    process = pf.FlowMatching()
    for t in (0.0, 0.3, 1.0):  # finite at both ends
        weights = prediction_weights(process, "velocity", Point.many(process, [t])[0])
        assert tuple(map(float, weights)) == (-1.0, 1.0)
    x = state(process, 0.3)
    model = pf.Model(lambda x, t: EPS - X0, process, "velocity")
    torch.testing.assert_close(model.predict(x, 0.3, "x0"), X0, rtol=1e-13, atol=1e-13)


# Time --------------------------------------------------------------------------------------


def echo(x: Tensor, t: Tensor) -> Tensor:
    """A model that returns the time it was given, so that tests can look at it."""
    assert t.shape == (len(x),)
    return t.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1)).expand_as(x)


@pytest.mark.parametrize("t", [0.3, torch.tensor(0.3, dtype=torch.float64), [0.3, 0.3]])
def test_time_reaches_the_model_in_full_precision(t: Any) -> None:
    t = torch.tensor(t, dtype=torch.float64) if isinstance(t, list) else t
    x = torch.zeros(2, 3, dtype=torch.float64)
    assert (pf.Model(echo, pf.VP.linear())(x, t) == 0.3).all()
    scaled = pf.Model(echo, pf.VP.linear(), time=lambda t: 1000 * t)
    assert (scaled(x, t) == 300.0).all()


def test_time_map_is_applied_before_rounding() -> None:
    """At t = 1 - 1e-9 float32 would make 1 - t zero; the map sees float64."""
    model = pf.Model(echo, pf.VP.linear(), time=lambda t: 1 - t)
    assert model(torch.zeros(1, 1), 1 - 1e-9).item() == pytest.approx(1e-9, rel=1e-6)
    times = model.own_times([1 - 1e-9, 0.5], torch.float32)
    assert times.dtype == torch.float32
    assert times[0].item() == pytest.approx(1e-9, rel=1e-6)


def test_times_of_each_sample() -> None:
    x, t = torch.zeros(3, 2), torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(pf.Model(echo, pf.VP.linear())(x, t)[:, 0], t)
    process = pf.VP.linear()
    model = pf.Model(lambda x, t: torch.ones_like(x), process)
    expected = -1 / process.sigma(t)
    torch.testing.assert_close(model.predict(x, t, "score")[:, 0], expected.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    seen = []

    def function(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.dtype, t.dtype))
        return x

    model = pf.Model(function, pf.VP.linear())
    x = torch.randn(2, 3).to(dtype)
    assert model(x, 0.5).dtype == dtype
    assert model.predict(x, 0.5, "score").dtype == dtype
    assert set(seen) == {(dtype, torch.float32)}
    exact = model.predict(x.double(), 0.5, "x0")
    torch.testing.assert_close(model.predict(x, 0.5, "x0").double(), exact, rtol=1e-2, atol=0.05)


def test_a_time_map_must_keep_the_shape() -> None:
    model = pf.Model(echo, pf.VP.linear(), time=lambda t: 3.0)
    with pytest.raises(ValueError, match=r"time: must map an array of shape \(2,\)"):
        model.own_times([0.1, 0.2], torch.float32)


# Conditioning, parameters ------------------------------------------------------------------


def test_kwargs_are_passed_on() -> None:
    def function(x: Tensor, t: Tensor, *, scale: float, label: Tensor) -> Tensor:
        return scale * x + label

    label = torch.tensor([[1.0], [2.0]])
    model = pf.Model(function, pf.VP.linear(), kwargs={"scale": 3.0, "label": label})
    x = torch.ones(2, 1)
    torch.testing.assert_close(model(x, 0.5), 3 * x + label)
    process = model.process
    torch.testing.assert_close(
        model.as_prediction("score")(x, 0.5), -(3 * x + label) / float(process.sigma(0.5))
    )


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.linear(x) * t[:, None]


def test_parameters_of_a_module_are_found() -> None:
    net = Net()
    model = pf.Model(net, pf.VP.linear())
    assert {id(p) for p in model.parameters()} == {id(p) for p in net.parameters()}
    converted = model.as_prediction("x0")
    assert {id(p) for p in converted.parameters()} == {id(p) for p in net.parameters()}
    assert not net.training or model.eval() is model
    assert not net.training
    x = torch.randn(2, 3)
    converted(x, 0.5).sum().backward()
    assert net.linear.weight.grad is not None
    again = pf.Model(Net(), pf.VP.linear())
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x, 0.5), model(x, 0.5))


def test_targets_as_models() -> None:
    target, process = pf.Gaussian([1.0, 2.0], 0.5), pf.VP.linear()
    x = torch.randn(3, 2, dtype=torch.float64)
    alpha, sigma = float(process.alpha(0.4)), float(process.sigma(0.4))
    score = -(x - alpha * torch.tensor([1.0, 2.0]).double()) / (alpha**2 * 0.5 + sigma**2)
    for prediction in PREDICTIONS:
        model = target.model(process, prediction)
        assert model.prediction == prediction
        torch.testing.assert_close(model.predict(x, 0.4, "score"), score, rtol=1e-12, atol=1e-12)


# What is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda x: None, TypeError, "model: must return a tensor, returned NoneType"),
        (lambda x: (x,), TypeError, "model: must return a tensor, returned tuple"),
        (lambda x: x.numpy(), TypeError, "model: must return a tensor, returned ndarray"),
        (lambda x: x[:, :2], ValueError, r"state's shape \(2, 3\), returned \(2, 2\)"),
        (lambda x: x[:1], ValueError, r"state's shape \(2, 3\), returned \(1, 3\)"),
        (lambda x: x.double(), ValueError, "dtype torch.float32, returned torch.float64"),
        (lambda x: x.to("meta"), ValueError, "state's device cpu, returned one on meta"),
    ],
)
def test_wrong_outputs(output: Any, error: type[Exception], message: str) -> None:
    model = pf.Model(lambda x, t: output(x), pf.VP.linear())
    with pytest.raises(error, match=message):
        model(torch.zeros(2, 3), 0.5)
    with pytest.raises(error, match=message):
        model.predict(torch.zeros(2, 3), 0.5, "x0")


def test_wrong_arguments() -> None:
    process = pf.VP.linear()
    with pytest.raises(TypeError, match="function: need a callable"):
        pf.Model(3, process)
    with pytest.raises(TypeError, match="process: need a probflow process"):
        pf.Model(echo, "vp")
    with pytest.raises(ValueError, match="prediction: got 'noise', allowed are eps, x0, v"):
        pf.Model(echo, process, "noise")
    with pytest.raises(ValueError, match="prediction: got 'noise', allowed"):
        pf.Model(echo, process).as_prediction("noise")
    with pytest.raises(ValueError, match="prediction: got 'noise', allowed"):
        pf.Model(echo, process).predict(torch.zeros(1, 1), 0.5, "noise")
