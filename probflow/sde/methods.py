r"""One-step methods for :math:`dY = f(t, Y)\,dt + g(t, Y)\,dW`, each next to its equation.

A step is ``step(sde, t, h, y, noise)``: times ``t`` of the method's nodes (0-d tensors), a float
``h`` > 0, the state, and the noise of the step: the increment W, shape (batch, m), or the pair
(W, U) with the time integral :math:`U = \int_0^h W_s\,ds`, or (W, A) with the Levy area A, shape
(batch, m, m). Methods with memory take it last and return (state, memory).

Strong orders are those for smooth coefficients with bounded derivatives. With noise that is
diagonal, scalar or additive an order 1/2 of general noise becomes 1 where no Levy area enters.

A method's ``lower`` is a step of a lower order that begins with the same evaluations: the
difference of the two is an embedded error estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from probflow.sde.settings import NOISE_TYPES, SDE_TYPES
from probflow.sde.system import System

__all__ = ["Method", "choose", "default_adjoint_method", "default_method", "reversible_heun"]

Times = tuple[Tensor, ...]
Pair = tuple[Tensor, Tensor]
Memory = tuple[Tensor, ...]


def euler(sde: System, t: Times, h: float, y: Tensor, w: Tensor) -> Tensor:
    r""":math:`y' = y + h f + g W`, Ito; strong order 1/2, additive noise 1.

    Maruyama 1955; Kloeden and Platen 1992, eq. 10.2.4.
    """
    return y + sde.increment(t[0], y, h, w)


def milstein_ito(sde: System, t: Times, h: float, y: Tensor, w: Tensor) -> Tensor:
    r""":math:`y' = y + h f + g W + \frac{1}{2} g' g (W^2 - h)`, Ito; strong order 1.

    Milstein 1974; Kloeden and Platen 1992, eq. 10.3.1.
    """
    return y + sde.milstein(t[0], y, h, w, 0.5 * (w * w - h))


def milstein_stratonovich(sde: System, t: Times, h: float, y: Tensor, w: Tensor) -> Tensor:
    r""":math:`y' = y + h f + g W + \frac{1}{2} g' g W^2`, Stratonovich; strong order 1.

    Kloeden and Platen 1992, eq. 10.3.2.
    """
    return y + sde.milstein(t[0], y, h, w, 0.5 * (w * w))


def milstein_lower(sde: System, t: Times, h: float, y: Tensor, w: Tensor) -> Tensor:
    r""":math:`y' = y + h f + g W` with the diffusion of which Milstein's derivative is taken."""
    return y.add(sde.f(t[0], y), alpha=h) + sde.prod(sde.differentiable(t[0], y)[0], w)


def milstein_ito_free(sde: System, t: Times, h: float, y: Tensor, w: Tensor) -> Tensor:
    r"""Milstein with :math:`g' g \approx (g(y + h f + \sqrt h g) - g) / \sqrt h`, Ito; order 1.

    Kloeden and Platen 1992, eq. 11.1.3.
    """
    f, g = sde.f_and_g(t[0], y)
    root, w = math.sqrt(h), sde.spread(w, y)
    factor = sde.factor(g)
    support = y.add(f, alpha=h).add(factor, alpha=root)
    change = sde.factor(sde.g(t[0], support)) - factor
    return y.add(f, alpha=h) + factor * w + change * (w * w - h) * (0.5 / root)


def srk(sde: System, t: Times, h: float, y: Tensor, noise: Pair) -> Tensor:
    r"""Stochastic Runge-Kutta SRI2, Ito, scalar or diagonal noise; strong order 3/2, ODE order 3.

    Roessler 2010 (SIAM J. Numer. Anal. 48, 922-952), table 5.2 and eq. 5.1, with
    :math:`I_{11} = (W^2 - h)/2`, :math:`I_{10} = U`, :math:`I_{111} = (W^3 - 3 h W)/6`. Of the four
    stages the drift enters with three, the diffusion with four: 3 f and 4 g a step.
    """
    t0, t_quarter, t_half, t1 = t
    w, u = (sde.spread(x, y) for x in noise)
    root = math.sqrt(h)
    f1, g1 = sde.f_and_g(t0, y)
    g1 = sde.factor(g1)
    f2 = sde.f(t1, y.add(f1, alpha=h))
    g2 = sde.factor(sde.g(t_quarter, y.add(f1, alpha=0.25 * h).add(g1, alpha=-0.5 * root)))
    f3 = sde.f(t_half, y.add(f1 + f2, alpha=0.25 * h) + g1.add(g2, alpha=0.5) * (u / h))
    g3 = sde.factor(sde.g(t1, y.add(f1, alpha=h).add(g1, alpha=root)))
    support = y.add(f3, alpha=0.25 * h).add(2.0 * g1 - g2 + 0.5 * g3, alpha=root)
    g4 = sde.factor(sde.g(t_quarter, support))
    second = (w * w - h) * (0.5 / root)  # I11 / sqrt(h)
    mean = u / h  # I10 / h
    third = (w * w - 3.0 * h) * w * (1.0 / (6.0 * h))  # I111 / h
    return (
        y.add(f1 + f2 + 4.0 * f3, alpha=h / 6.0)
        + g1 * (second - w + 2.0 * (mean - third))
        + g2 * ((4.0 * (w - second - mean) + 5.0 * third) / 3.0)
        + g3 * ((2.0 * (w - mean - third) + second) / 3.0)
        + g4 * third
    )


def srk_additive(sde: System, t: Times, h: float, y: Tensor, noise: Pair) -> Tensor:
    r"""Stochastic Runge-Kutta SRA1, Ito, additive noise; strong order 3/2, 2 f and 2 g a step.

    Roessler 2010 (SIAM J. Numer. Anal. 48, 922-952), table 6.1 and eq. 6.2, with
    :math:`I_{10} = U`.
    """
    t0, t_late, t1 = t
    w, u = noise
    mean = u / h
    f1, late = sde.f(t0, y), sde.products(t1, y)
    f2 = sde.f(t_late, y.add(f1, alpha=0.75 * h) + late(1.5 * mean))
    drifted = y.add(f1, alpha=h / 3.0).add(f2, alpha=2.0 * h / 3.0)
    return drifted + late(w - mean) + sde.g_prod(t0, y, mean)


def heun(sde: System, t: Times, h: float, y: Tensor, w: Tensor) -> Tensor:
    r"""Trapezoidal rule with an Euler predictor, Stratonovich; strong order 1, general noise 1/2.

    Ruemelin 1982; Burrage, Burrage and Tian 2004 (Proc. R. Soc. A 460, 373-402).
    """
    first = sde.increment(t[0], y, h, w)
    second = sde.increment(t[1], y + first, h, w)
    return y.add(first + second, alpha=0.5)


def euler_heun(sde: System, t: Times, h: float, y: Tensor, w: Tensor) -> Tensor:
    r""":math:`y' = y + h f + \frac{1}{2} (g(y) + g(y + g W)) W`, Stratonovich; order as Heun's.

    Kloeden and Platen 1992, section 4.9: Euler's method for the drift, Heun's for the noise. It is
    also what ``milstein`` without derivatives is here: with the support :math:`y + \sqrt h g` of
    their section 11.1, and of torchsde, an error :math:`\frac{1}{4} g'' g^2 \sqrt h W^2` remains
    whose mean is not 0, so that the order is 1/2.
    """
    f, first = sde.f_and_g_prod(t[0], y, w)
    second = sde.g_prod(t[1], y + first, w)
    return y.add(f, alpha=h).add(first + second, alpha=0.5)


def midpoint(sde: System, t: Times, h: float, y: Tensor, w: Tensor) -> Tensor:
    r"""Explicit midpoint rule, Stratonovich; strong order 1, general noise 1/2.

    Ruemelin 1982; Milstein and Tretyakov 2004, section 1.3.
    """
    half = sde.increment(t[0], y, h, w)
    return y + sde.increment(t[1], y.add(half, alpha=0.5), h, w)


def log_ode(sde: System, t: Times, h: float, y: Tensor, noise: Pair) -> Tensor:
    r"""Midpoint rule with the bracket term of the log-signature, Stratonovich general noise.

    :math:`y' = y + h f + g W + \sum_{kl} A_{kl} (\partial g_l) g_k` at the midpoint (Castell and
    Gaines 1995; Foster 2020, thesis, section 4.1). Strong order 1/2 with an approximate area, and 1
    with an exact one, or where the columns of g commute.
    """
    w, area = noise
    middle = y.add(sde.increment(t[0], y, h, w), alpha=0.5)
    return y + sde.increment(t[1], middle, h, w) + sde.levy(t[1], middle, area)


def reversible_heun_start(sde: System, t: Tensor, y: Tensor) -> Memory:
    """(f, g, z) at the first time, with z = y."""
    return (*sde.f_and_g(t, y), y)


def reversible_heun(
    sde: System, t: Times, h: float, y: Tensor, w: Tensor, memory: Memory
) -> tuple[Tensor, Memory]:
    r"""Algebraically reversible Heun, Stratonovich; strong order 1, general noise 1/2.

    :math:`z' = 2 y - z + h f + g W`, :math:`y' = y + \frac{h}{2}(f + f') + \frac{1}{2}(g + g') W`
    with f', g' at z'; one evaluation a step. Kidger, Foster, Li and Lyons 2021 (arXiv 2105.13493,
    algorithm 1), with proofs for additive (1) and general noise (1/2); 1 is measured for diagonal,
    scalar and commutative noise.
    """
    f, g, z = memory
    z1 = (2.0 * y - z).add(f, alpha=h) + sde.prod(g, w)
    f1, g1 = sde.f_and_g(t[0], z1)
    return y.add(f + f1, alpha=0.5 * h) + sde.prod(g + g1, 0.5 * w), (f1, g1, z1)


def reversible_heun_lower(
    sde: System, t: Times, h: float, y: Tensor, w: Tensor, memory: Memory
) -> Tensor:
    r""":math:`y' = y + h f + g W` with the evaluations that the step begins with."""
    f, g, _ = memory
    return y.add(f, alpha=h) + sde.prod(g, w)


@dataclass(frozen=True)
class Method:
    """A step function with what the loops need to know of it.

    Attributes
    ----------
    name
        torchsde's name.
    step
        The step function.
    sde_type, noise_types
        What it integrates.
    nodes
        Where in the step it evaluates, as fractions of h.
    needs
        Noise beside the increment: ``""``, ``"U"`` or ``"A"``.
    order, general_order
        Strong order, and that for general noise.
    start
        Makes the memory at the first time; ``None`` for a method without.
    options
        Options it has beside those of the call.
    adjoint
        Whether it needs only products with the diffusion, so that it can solve adjoint equations.
    lower
        Step function of a lower order, whose noise is W; ``None`` for a method without.
    lower_order
        Its order: local errors are of this and 1/2 more.
    """

    name: str
    step: Callable[..., Any]
    sde_type: str
    noise_types: tuple[str, ...]
    nodes: tuple[float, ...] = (0.0,)
    needs: str = ""
    order: float = 1.0
    general_order: float = 0.5
    start: Callable[[System, Tensor, Tensor], Memory] | None = None
    options: tuple[str, ...] = ()
    adjoint: bool = True
    lower: Callable[..., Tensor] | None = euler
    lower_order: float = 0.5

    def strong_order(self, noise_type: str) -> float:
        """Strong order, a float, for a noise type: a word of :mod:`probflow.sde.settings`."""
        return self.general_order if noise_type == NOISE_TYPES.general else self.order

    def embedded_order(self, noise_type: str) -> float:
        """Strong order of the step of lower order; Euler's is 1 where the noise is additive."""
        return max(self.lower_order, 1.0 if noise_type == NOISE_TYPES.additive else 0.0)


_ITO, _STRATONOVICH = SDE_TYPES.ito, SDE_TYPES.stratonovich
_ALL = tuple(NOISE_TYPES)
_FACTOR = (NOISE_TYPES.diagonal, NOISE_TYPES.scalar)
_ADDITIVE, _GENERAL = (NOISE_TYPES.additive,), (NOISE_TYPES.general,)
_FREE = ("grad_free",)

# The first entry that fits name, type and noise is taken.
_METHODS = (
    Method("euler", euler, _ITO, _ADDITIVE, lower=None),
    Method("euler", euler, _ITO, _ALL, order=0.5, lower=None),
    Method("milstein", milstein_ito, _ITO, _FACTOR, options=_FREE, lower=milstein_lower),
    Method("milstein", milstein_ito, _ITO, _ADDITIVE, options=_FREE, lower=None),
    Method("milstein", milstein_stratonovich, _STRATONOVICH, _FACTOR, options=_FREE,
           lower=milstein_lower),
    Method("milstein", milstein_stratonovich, _STRATONOVICH, _ADDITIVE, options=_FREE, lower=None),
    Method("srk", srk, _ITO, _FACTOR, (0.0, 0.25, 0.5, 1.0), "U", 1.5, adjoint=False,
           lower=milstein_ito_free, lower_order=1.0),
    Method("srk", srk_additive, _ITO, _ADDITIVE, (0.0, 0.75, 1.0), "U", 1.5, adjoint=False),
    Method("heun", heun, _STRATONOVICH, _ALL, (0.0, 1.0)),
    Method("euler_heun", euler_heun, _STRATONOVICH, _ALL, (0.0, 1.0)),
    Method("midpoint", midpoint, _STRATONOVICH, _ALL, (0.0, 0.5)),
    Method("log_ode", log_ode, _STRATONOVICH, _GENERAL, (0.0, 0.5), "A", adjoint=False),
    Method("log_ode", midpoint, _STRATONOVICH, _ALL, (0.0, 0.5), adjoint=False),
    Method("reversible_heun", reversible_heun, _STRATONOVICH, _ALL, (1.0,),
           start=reversible_heun_start, adjoint=False, lower=reversible_heun_lower),
)  # fmt: skip
_GRADIENT_FREE = (
    Method("milstein", milstein_ito_free, _ITO, _FACTOR, options=_FREE, adjoint=False),
    Method("milstein", euler_heun, _STRATONOVICH, _FACTOR, (0.0, 1.0), options=_FREE,
           adjoint=False),
)  # fmt: skip


def default_method(sde_type: str, noise_type: str) -> str:
    """torchsde's choice where no method is given.

    Parameters
    ----------
    sde_type, noise_type
        Words of :mod:`probflow.sde.settings`.

    Returns
    -------
    str
        A method's name.
    """
    if sde_type == SDE_TYPES.stratonovich:
        return "midpoint"
    return "euler" if noise_type == NOISE_TYPES.general else "srk"


def default_adjoint_method(method: str, sde_type: str, noise_type: str) -> str:
    """torchsde's choice for the adjoint equation.

    Parameters
    ----------
    method
        That of the forward solve.
    sde_type, noise_type
        Words of :mod:`probflow.sde.settings`.

    Returns
    -------
    str
        A method's name.
    """
    if method == "reversible_heun":
        return "adjoint_reversible_heun"
    if sde_type == SDE_TYPES.stratonovich:
        return "midpoint"
    return "milstein" if noise_type == NOISE_TYPES.diagonal else "euler"


def choose(
    name: str, sde_type: str, noise_type: str, options: Mapping[str, Any] | None = None
) -> Method:
    """The step function of a method for a kind of SDE.

    Parameters
    ----------
    name
        Name of a method.
    sde_type, noise_type
        Words of :mod:`probflow.sde.settings`.
    options
        Options of the call; ``grad_free`` is Milstein's.

    Returns
    -------
    Method
        Step function, orders, and what it asks of a motion.

    Raises
    ------
    ValueError
        If the method does not integrate it, naming those that do.
    """
    entries = (*_GRADIENT_FREE, *_METHODS) if (options or {}).get("grad_free") else _METHODS
    for method in entries:
        if method.name == name and method.sde_type == sde_type and noise_type in method.noise_types:
            return method
    fitting = dict.fromkeys(
        m.name for m in _METHODS if m.sde_type == sde_type and noise_type in m.noise_types
    )
    raise ValueError(
        f"method: {name} does not integrate {sde_type} SDEs with {noise_type} noise; for these: "
        f"{', '.join(fitting)}"
    )
