"""What stands around a call: torch's defaults, autocast, threads, modules of every make."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import probflow as pf
from probflow.ode.options import ADAMS, is_adaptive, native_methods

DOUBLE = torch.float64
EVERY = native_methods()
T = torch.linspace(0.0, 1.0, 6)


def how(method: str, step: float = 0.1, tol: float = 1e-4) -> dict[str, Any]:
    options = {} if is_adaptive(method) else {"step_size": step}
    return {"method": method, "rtol": tol, "atol": tol, "options": options}


class Net(nn.Module):
    def __init__(self, make: Callable[[], nn.Module] = lambda: nn.Linear(2, 2)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = make()
        self.register_buffer("scale", torch.tensor([1.0, 0.5]))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.layer(y)) * self.scale * (1 + t)


@pytest.mark.parametrize("method", EVERY)
def test_the_default_device_is_not_used(method: str, nowhere: None) -> None:
    seen = set()

    def func(t: Tensor, y: Any) -> Any:
        seen.add(t.device.type)
        return tuple(-part for part in y) if isinstance(y, tuple) else -y

    class Told:
        def __call__(self, t: Tensor, y: Tensor) -> Tensor:
            return -y

        def callback_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
            seen.update((t.device.type, dt.device.type))

    y0, options = torch.ones(3, device="cpu"), how(method)
    for t in ([0.0, 0.5, 1.0], torch.tensor([0.0, 1.0], device="cpu")):
        last = pf.odeint(func, y0, t, **options)[-1]
        assert torch.allclose(last, torch.exp(-y0), atol=0.05)
        pf.odeint(func, (y0, y0), t, **options)
        pf.odeint(Told(), y0, t, **options)
        leaf = y0.clone().requires_grad_()
        pf.odeint_adjoint(func, leaf, t, adjoint_params=(), **options).sum().backward()
    pf.odeint_event(func, y0, 0.0, event_fn=lambda t, y: y[0] - 0.5, **options)
    pf.ode_stepper(func, y0, 0.0, 1.0, **options).step()
    if method != ADAMS:
        pf.odeint_dense(func, y0, 0.0, 1.0, method=method, options=options["options"])([0.1, 0.3])
    if is_adaptive(method):
        own = {**options, "options": {"per_sample": True}}
        pf.odeint(func, y0[:, None], [0.0, 1.0], **own)
        own = {**options, "options": {"norm": lambda error: float(error.abs().max())}}
        pf.odeint(func, y0, [0.0, 1.0], **own)
    else:
        own = {**options, "options": {"grid_constructor": lambda f, y, t: t}}
        pf.odeint(func, y0, [0.0, 1.0], **own)
    assert seen == {"cpu"}


@pytest.mark.parametrize("method", EVERY)
def test_the_default_dtype_is_not_used(method: str) -> None:
    seen = set()

    def func(t: Tensor, y: Tensor) -> Tensor:
        seen.add((t.dtype, y.dtype))
        return -y

    torch.set_default_dtype(DOUBLE)
    try:
        y = pf.odeint(func, torch.ones(2, dtype=torch.float32), [0.0, 1.0], **how(method))
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.dtype == torch.float32
    assert seen == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("interface", [pf.odeint, pf.odeint_adjoint])
@pytest.mark.parametrize("method", EVERY)
def test_the_state_keeps_its_dtype_within_autocast(method: str, interface: Any) -> None:
    net, y0 = Net(), torch.ones(3, 2, requires_grad=True)
    exact = pf.odeint(net, y0, T, **how(method)).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = interface(net, y0, T, **how(method, tol=1e-2))
        y.sum().backward()
    assert y.dtype == y0.grad.dtype == torch.float32
    torch.testing.assert_close(y.detach(), exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "explicit_adams"])
def test_modules_whose_weights_are_made_of_others(method: str) -> None:
    """Weight norm, orthogonal weights and buffers: the adjoint's gradients are the direct ones."""

    def make() -> nn.Module:
        first = parametrizations.weight_norm(nn.Linear(2, 2))
        return nn.Sequential(
            first, nn.BatchNorm1d(2).eval(), parametrizations.orthogonal(nn.Linear(2, 2))
        )

    net, y0 = Net(make).double(), torch.randn(3, 2, dtype=DOUBLE)
    direct, adjoint = (
        torch.autograd.grad(
            solve(net, y0, T, **how(method, 0.02, 1e-8))[-1].square().sum(), tuple(net.parameters())
        )
        for solve in (pf.odeint, pf.odeint_adjoint)
    )
    torch.testing.assert_close(direct, adjoint, rtol=1e-4, atol=1e-5)


def test_parameters_that_are_results() -> None:
    """As a network that makes the weights of another one."""
    root = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    rate = 2.0 * root
    y = pf.odeint_adjoint(
        lambda t, y: -rate * y, torch.ones(1, dtype=DOUBLE), [0.0, 1.0], adjoint_params=(rate,)
    )
    y[-1].sum().backward()  # exp(-2 root)
    assert float(root.grad) == pytest.approx(float(-2 * torch.exp(-rate.detach())), abs=1e-6)


def test_replicas_of_data_parallel() -> None:
    """Their parameters are plain attributes, results of the broadcast."""
    net = Net()
    replica = net._replicate_for_data_parallel()
    layer = net.layer._replicate_for_data_parallel()
    for name, parameter in net.layer.named_parameters():
        layer._parameters.pop(name, None)
        vars(layer)[name] = parameter * 1.0
    replica.layer = layer
    for module in (replica, net):
        pf.odeint_adjoint(module, torch.ones(3, 2), T).sum().backward()
    whole = net.layer.weight.grad
    net.zero_grad()
    pf.odeint_adjoint(net, torch.ones(3, 2), T).sum().backward()
    torch.testing.assert_close(whole, 2 * net.layer.weight.grad)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "explicit_adams"])
def test_threads(method: str) -> None:
    net, states = Net(), torch.randn(8, 3, 2)

    def solve(y0: Tensor) -> Tensor:
        return pf.odeint_adjoint(net, y0, T, **how(method)).detach()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(solve, states))
    assert all(torch.equal(y, solve(y0)) for y, y0 in zip(found, states, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", ["dopri5", "rk4", "explicit_adams"])
def test_compiled_and_scripted_functions(method: str) -> None:
    net, y0 = Net(), torch.ones(3, 2)
    exact = pf.odeint(net, y0, T, **how(method))
    for func in (torch.jit.script(net), torch.compile(net, backend="eager")):
        torch.testing.assert_close(pf.odeint(func, y0, T, **how(method)), exact)
        y = pf.odeint_adjoint(func, y0, T, adjoint_params=tuple(net.parameters()), **how(method))
        torch.testing.assert_close(y, exact)
        y.sum().backward()


@pytest.mark.parametrize("tuples", [False, True])
@pytest.mark.parametrize("method", EVERY)
def test_results_may_be_written_on(method: str, tuples: bool) -> None:
    """Nothing that is returned lies where the caller's state does."""
    y0 = torch.ones(2, requires_grad=True)
    for t in (T, T[:1]):
        if tuples:
            (y,) = pf.odeint(lambda t, y: (-y[0],), (y0,), t, **how(method))
        else:
            y = pf.odeint(lambda t, y: -y, y0, t, **how(method))
        y += 1.0
        y.sum().backward()
    assert torch.equal(y0.detach(), torch.ones(2))
