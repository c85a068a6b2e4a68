r"""Densities of data by the probability-flow ODE.

The flow :math:`\dot x = v(x, t)` from :math:`t_0` (data) to :math:`t_1` (noise) carries the law of
the data into the prior, and along it the density changes as

.. math:: \ln p_{t_0}(x) = \ln p_{t_1}(x(t_1)) + \int_{t_0}^{t_1} \nabla\cdot v(x(t), t)\,dt

(instantaneous change of variables: Chen et al. 2018, arXiv 1806.07366, theorem 1; Song et al. 2021,
arXiv 2011.13456, eq. 39). The divergence is the trace of the Jacobian, or Hutchinson's estimate
:math:`\epsilon^T J \epsilon` of it (Grathwohl et al. 2019, arXiv 1810.01367, eq. 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probflow.encoding import (
    check_state,
    is_adaptive,
    naming_sample,
    observed,
    outside_inference,
    route,
    spelled,
)
from probflow.integrate.noise import check_seed, normals
from probflow.models import Model
from probflow.ode import ODEResult, solve_ode
from probflow.ode.options import native_methods
from probflow.problems import as_model
from probflow.processes import Process
from probflow.words import check_choice, check_real, check_whole, dictionary

__all__ = ["LogLikelihood", "log_likelihood"]

DIVERGENCES = ("exact", "hutchinson")
PROBES = ("rademacher", "gaussian")
PROBES_A_SAMPLE = 4
EXACT_UP_TO = 64  # coordinates a sample for which the trace is the default
_CHUNK = 2**20  # numbers in the vectors that go through one backward pass together
_FIRST_DRAW = 2**62  # away from the draws of initial states and steps of the same seed


@dataclass(frozen=True)
class LogLikelihood:
    """Log-densities of a batch, in nats, float64, and what they are made of.

    Attributes
    ----------
    log_prob
        ``ln p_t0(x)``, (batch,): the sum of the next two.
    prior_log_prob
        Log-density of ``z`` under the prior, (batch,).
    delta_log_prob
        Integral of the divergence from t0 to t1, (batch,).
    standard_error
        Of ``log_prob``, from the spread of the probes, (batch,): 0 for the exact divergence, NaN
        for a single probe. Intervals from it need Student's t, and in few dimensions or from few
        probes hold the value less often than they say (docs/likelihood.md has the shares).
    z
        State at t1, the encoding of x: shape and dtype of x.
    t0, t1
        The ends of the integral.
    nfe
        Evaluations of velocity and divergence (of whole batches).
    ode
        The solver's result: its state is the pair of x and the integrals, (batch, 1 or probes).
    """

    log_prob: Tensor
    prior_log_prob: Tensor
    delta_log_prob: Tensor
    standard_error: Tensor
    z: Tensor
    t0: float
    t1: float
    nfe: int
    ode: ODEResult

    def bits_per_dim(self, scale: float = 128.0) -> Tensor:
        r"""Bits per coordinate of discrete data, :math:`-\log_2 p(x)/d + \log_2` scale, (batch,).

        Levels y = 0, 1, 2, ... made continuous by noise u, uniform on [0, 1), and scaled as
        ``x = (y + u)/scale + constant`` have the density p(x)/scale^d, and the mean of its
        negative logarithm bounds the code length of y from above (Theis et al. 2016, arXiv
        1511.01844, section 3.1).

        Parameters
        ----------
        scale
            Levels per unit of x: 128 for 256 levels on [-1, 1], 256 for 256 levels on [0, 1], and
            1 for data that are continuous.

        Returns
        -------
        Tensor
            (batch,), dtype of ``log_prob``.

        Raises
        ------
        TypeError, ValueError
            Unless ``scale`` is a positive and finite number.
        """
        scale = check_real("scale", scale, "(0, inf)")
        dim = self.z[0].numel()
        return -self.log_prob / (dim * math.log(2.0)) + math.log2(scale)


def log_likelihood(
    model: Any,
    x: Tensor,
    method: str = "dopri5",
    steps: int | None = None,
    *,
    process: Process | None = None,
    t0: float | None = None,
    t1: float | None = None,
    grid: Any = None,
    rtol: Any = None,
    atol: Any = None,
    options: Mapping[str, Any] | None = None,
    divergence: str | None = None,
    probe: str = "rademacher",
    probes: int | None = None,
    seed: int | None = None,
    first_sample: int = 0,
    chunk: int | None = None,
    prior: Any = None,
    gradients: bool = False,
) -> LogLikelihood:
    r"""Log-density of data under a diffusion model, :math:`\ln p_{t_0}(x)`.

    Velocity and divergence come from one forward pass of the model, with one backward pass for
    every vector the Jacobian is multiplied by.

    Parameters
    ----------
    model
        A :class:`probflow.Model` that can be differentiated with respect to its state, or a target
        (then ``process`` is needed).
    x
        Data, (batch, ...). Half precision is what the model gets; the state between its calls and
        all sums are carried in float32 at least. Take fixed steps then: rounding looks like an
        error of the solver.
    method
        Any general method of :func:`probflow.odeint`; adaptive ones choose their steps.
    steps, grid
        Of fixed-step methods, as in :func:`probflow.sample`.
    process
        Noising process of a target; a model has its own.
    t0, t1
        Data end and noise end; by default ``process.end`` and ``process.start``, between which
        :func:`probflow.sample` runs.
    rtol, atol
        Tolerances of adaptive methods for the state and for the integral of the divergence, by
        default 1e-5 as in Song et al. 2021: within the reach of float32, and for images far below
        0.001 bits per coordinate.
    options
        For the solver, see :func:`probflow.odeint`. Adaptive methods have ``per_sample`` set, so
        that the steps of a sample, and its value, do not depend on the rest of the batch.
    divergence
        ``"exact"``, the trace, with one backward pass for every coordinate: the default for up to
        64 coordinates a sample. ``"hutchinson"``, an unbiased estimate with one for every probe:
        the default for more.
    probe
        Law of the probes' entries: ``"rademacher"`` (signs) or ``"gaussian"``.
    probes
        Number of probes a sample, by default 4; they stay the same along the trajectory.
    seed, first_sample
        Fix the probes; like ``probes`` not for ``divergence="exact"``, and without effect where
        that is chosen by default. Sample i of a seed has the same ones whatever the batch;
        ``first_sample`` is the number of this batch's first.
    chunk
        How many vectors go through a backward pass together, by ``torch.vmap``. By default their
        total size is limited to 2**20 numbers; 1 does without vmap.
    prior
        Law of the state at t1. By default normal with the standard deviation
        ``process.prior_std(t1)``. A target: its exact noised law; ``"exact"``: that of the target
        given as the model. Or a function from z (batch, ...) to log-densities (batch,).
    gradients
        Keep the graph, so that the result can be differentiated.

    Returns
    -------
    LogLikelihood

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit, before any model call; ValueError also for a model without a
        derivative with respect to its state.
    NonFiniteError
        If the model returns NaN or infinity, naming a sample.
    StepSizeError, MaxStepsError
        If the tolerances cannot be met.

    Examples
    --------
    >>> import torch, probflow as pf
    >>> law = pf.Gaussian([1.0, -1.0], 0.25)
    >>> x = torch.zeros(1, 2, dtype=torch.float64)
    >>> found = pf.log_likelihood(law, x, process=pf.VP.linear(), prior="exact")
    >>> round(float(found.log_prob[0]), 3)
    -4.45
    """
    denoiser = as_model(model, process)
    check_state(x, "x")
    for name in ("args", "kwargs"):
        if dictionary(options).get(name):
            raise ValueError(
                f"options: {name!r} is for a function of one's own; a model has its conditioning "
                "from pf.Model(..., kwargs=...)"
            )
    ends, settings, tolerances = route(
        denoiser.process, _method_is_adaptive(method), steps, grid, t0, t1, rtol, atol, options
    )
    log_prior = _log_prior(prior, model, denoiser.process, ends[1])
    if divergence == "exact" and (probes, seed) != (None, None):
        raise ValueError(
            "probes, seed: they are for divergence='hutchinson', the exact one draws nothing; got "
            f"probes={probes!r}, seed={seed!r}"
        )
    probes = PROBES_A_SAMPLE if probes is None else probes
    check_whole("probes", probes, 1)
    check_whole("first_sample", first_sample, 0)
    if chunk is not None:
        check_whole("chunk", chunk, 1)
    check_choice("probe", probe, PROBES)
    dim = x[0].numel()
    if divergence is None:
        divergence = "exact" if dim <= EXACT_UP_TO else "hutchinson"
    check_choice("divergence", divergence, DIVERGENCES)
    exact = divergence == "exact"
    with outside_inference(gradients):
        start = x.clone() if x.is_inference() else x
        start = start.to(torch.promote_types(x.dtype, torch.float32))
        if exact:
            vectors = torch.eye(dim, dtype=start.dtype, device=x.device)
            vectors = vectors.reshape(dim, 1, *x.shape[1:]).expand(dim, *x.shape)
        else:
            vectors = _probes(start, seed, first_sample, probes, probe)
        size = chunk or max(1, _CHUNK // x.numel())
        flow = _Flow(denoiser, x.dtype, vectors.split(size), exact, gradients)
        integrals = start.new_zeros(len(x), 1 if exact else probes)
        with naming_sample(flow.seen):
            ode = solve_ode(
                flow, (start, integrals), ends, method=method, options=settings, **tolerances
            )
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        z, estimates = ode.y[0][-1], ode.y[1][-1].to(wide)
        base, delta = log_prior(z.to(wide)), estimates.mean(1)
        if exact:
            error = torch.zeros_like(delta)
        elif probes == 1:
            error = torch.full_like(delta, math.nan)
        else:
            error = estimates.std(1) / math.sqrt(probes)
        return LogLikelihood(
            log_prob=base + delta, prior_log_prob=base, delta_log_prob=delta, standard_error=error,
            z=z.to(x.dtype), t0=ends[0], t1=ends[1], nfe=ode.nfe, ode=ode,
        )  # fmt: skip


class _Flow:
    """The right-hand side for the pair (x, integrals): velocity and forms e^T J e of vectors e."""

    def __init__(
        self, model: Model, dtype: torch.dtype, vectors: Any, exact: bool, graph: bool
    ) -> None:
        self.model, self.seen = observed(model)
        self.dtype, self.vectors, self.exact, self.graph = dtype, vectors, exact, graph
        self.checked = False

    def __call__(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x = state[0]
        with torch.enable_grad():
            x = x if self.graph and x.requires_grad else x.detach().requires_grad_()
            v = self.model.predict(x.to(self.dtype), t, "velocity").to(x.dtype)
            self._check(x)
            forms = torch.cat([self._forms(v, x, e) for e in self.vectors])
        change = forms.sum(0, keepdim=True) if self.exact else forms
        return (v if self.graph else v.detach()), change.T

    def _forms(self, v: Tensor, x: Tensor, e: Tensor) -> Tensor:
        """``e^T J e`` for vectors e (n, batch, ...), shape (n, batch)."""
        many = len(e) > 1
        (products,) = torch.autograd.grad(
            v, x, e if many else e[0], retain_graph=True, create_graph=self.graph,
            is_grads_batched=many,
        )  # fmt: skip
        return (products.reshape(e.shape) * e).reshape(len(e), len(x), -1).sum(2)

    def _check(self, x: Tensor) -> None:
        """Raise ``ValueError`` if the model's own output hides its derivative."""
        output, self.seen.output = self.seen.output, None
        if self.checked:
            return
        self.checked = True
        if output.requires_grad:
            (by_x,) = torch.autograd.grad(output.sum(), x, retain_graph=True, allow_unused=True)
            if by_x is not None:
                return
        raise ValueError(
            "model: its output has no derivative with respect to the state, so there is no "
            "divergence; it must not run under torch.no_grad() or detach x (a constant output: "
            "add 0 * x)"
        )


def _method_is_adaptive(method: Any) -> bool:
    """Whether a general method is adaptive; raises if it is none."""
    allowed = (*native_methods(), "heun")
    if not isinstance(method, str):
        raise TypeError(f"method: need a name, got {method!r}; allowed are {', '.join(allowed)}")
    if spelled(method) not in allowed:
        raise ValueError(
            f"method: got {method!r}; the divergence is integrated along with the state, which "
            f"general methods do: {', '.join(allowed)}"
        )
    return is_adaptive(method)


def _log_prior(prior: Any, model: Any, process: Process, t1: float) -> Callable[[Tensor], Tensor]:
    """Log-density at t1, from states (batch, ...) to (batch,)."""
    if prior is None:
        std = process.prior_std(t1)

        def normal(z: Tensor) -> Tensor:
            flat = z.reshape(len(z), -1)
            constant = flat.shape[1] * math.log(2.0 * math.pi * std**2)
            return -0.5 * ((flat / std).square().sum(1) + constant)

        return normal
    if isinstance(prior, str):
        if prior != "exact":
            raise ValueError(f"prior: got {prior!r}, the only name is 'exact'")
        if isinstance(model, Model):
            raise ValueError(
                "prior: 'exact' needs a target as the model; for a pf.Model give the target itself "
                "as prior"
            )
        prior = model
    if hasattr(prior, "score") and hasattr(prior, "log_prob"):
        level = float(process.alpha(t1)), float(process.sigma(t1))
        return lambda z: prior.log_prob(z, *level)
    if not callable(prior):
        raise TypeError(
            "prior: need None, 'exact', a target or a function from z to log-densities, got "
            f"{prior!r}"
        )

    def checked(z: Tensor) -> Tensor:
        value = prior(z)
        if not isinstance(value, Tensor) or value.shape != z.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"prior: must return log-densities of shape ({len(z)},), got {got}")
        return value

    return checked


def _probes(like: Tensor, seed: int | None, first: int, count: int, law: str) -> Tensor:
    """Vectors of mean 0 and covariance 1, (count, batch, ...), keyed by seed, sample and number."""
    if seed is None:
        raise ValueError("seed: Hutchinson's estimate draws probes; give seed=...")
    samples = torch.arange(first, first + len(like), device=like.device)
    draws = torch.arange(_FIRST_DRAW, _FIRST_DRAW + count, device=like.device)
    values = normals(check_seed(seed), samples, draws, like[0].numel(), like.dtype)
    if law == "rademacher":
        values = torch.where(values < 0, -1.0, 1.0).to(like.dtype)
    return values.reshape(count, *like.shape)
