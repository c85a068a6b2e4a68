r"""Weights of exponential integrators and Adams methods, in float64.

The functions :math:`\varphi_k(z) = \int_0^1 e^{(1-\theta)z} \theta^{k-1}/(k-1)!\, d\theta` begin
with :math:`\varphi_1 = (e^z - 1)/z` and obey :math:`\varphi_{k+1} = (\varphi_k - 1/k!)/z`
(Hochbruck, Ostermann 2010, Exponential integrators, eq. 2.10 and 2.11). All weights of an
exponential method are combinations of them; at z = 0, where :math:`\varphi_k = 1/k!`, they are the
weights of the classical method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from math import factorial
from typing import Any

import numpy as np

from probflow.plan.columns import Column, Number, expm1, some

__all__ = ["adams", "gauss", "moments", "phi", "phis"]

#: Up to here the power series has no cancellation to speak of; beyond, the recursion has none.
_SERIES = 5.0
_FACTORIAL = [float(factorial(k)) for k in range(20)]


def phis(count: int, z: Number) -> Sequence[Number]:
    r""":math:`\varphi_1(z), \dots` up to ``count``, each as accurate as by :func:`phi`.

    The last by its series, the others downwards; all upwards for large z.
    """
    return _phis(count, z) if isinstance(z, Column) else _remembered(count, z)


def _phis(count: int, z: Number) -> Sequence[Number]:
    if abs(z) > _SERIES:
        values = [expm1(z) / z]
        for k in range(1, count):
            values.append((values[-1] - 1.0 / _FACTORIAL[k]) / z)
        return values
    total = term = 1.0 / _FACTORIAL[count]
    n = count
    while some(abs(term) > 1e-17 * abs(total)):
        n += 1
        term *= z / n
        total += term
    values = [total]
    for k in range(count - 1, 0, -1):
        values.append(z * values[-1] + 1.0 / _FACTORIAL[k])
    if z != 0.0:
        values[-1] = expm1(z) / z
    return values[::-1]


_remembered = lru_cache(maxsize=4096)(_phis)


def phi(k: int, z: Number) -> Number:
    r""":math:`\varphi_k(z)` for k >= 1, to a relative accuracy of 1e-14 (abs(z) <= 50, k <= 5)."""
    return phis(k, z)[-1]


def moments(count: int, z: Number = 0.0) -> list[Number]:
    r""":math:`\int_0^1 e^{(1-\theta)z} \theta^k d\theta = k!\,\varphi_{k+1}(z)`, k < ``count``."""
    return [_FACTORIAL[k] * value for k, value in enumerate(phis(count, z))]


def adams(nodes: Sequence[Number], means: Sequence[Number]) -> list[Number]:
    r"""Weights of an Adams method: the mean of each Lagrange polynomial of the nodes.

    The mean of a polynomial is given by those of the powers, ``means``: :func:`moments` or others.
    Nodes are in units of the step: 0 is its start, 1 its end, and what was stored at earlier steps
    lies below 0. With all nodes at most 0 (Adams-Bashforth) nothing cancels: multiplying by
    (theta - node) adds up terms of the same sign.

    Examples
    --------
    >>> adams([0.0, -1.0], moments(2))  # the two-step Adams-Bashforth method
    [1.5, -0.5]
    """
    return _adams(len(nodes))(nodes, means)


@cache
def _adams(count: int) -> Callable[[Sequence[Number], Sequence[Number]], list[Number]]:
    """:func:`adams` for ``count`` nodes n0, n1, .., written out: a tenth of the time of loops.

    b holds the means of the powers times (theta - node) for the nodes before the present one, v
    those times (theta - node) for the nodes after it, too.
    """
    nodes = [f"n{j}" for j in range(count)]
    lines = [
        ", ".join(nodes) + ", = nodes",
        ", ".join(f"b{k}" for k in range(count)) + ", *_ = means",
    ]
    weights = []
    for j, own in enumerate(nodes):
        left = count - j
        values = [f"b{k}" for k in range(left)]
        for node in nodes[j + 1 :]:
            left -= 1
            lines += [f"v{k} = {values[k + 1]} - {node} * {values[k]}" for k in range(left)]
            values = [f"v{k}" for k in range(left)]
        scale = " * ".join(f"({own} - {node})" for node in nodes if node != own)
        weights.append(f"w{j}")
        lines.append(f"w{j} = {values[0]} / ({scale or 1.0})")
        lines += [f"b{k} = b{k + 1} - {own} * b{k}" for k in range(count - j - 1)]
    lines.append(f"return [{', '.join(weights)}]")
    scope: dict[str, Any] = {}
    exec("def adams(nodes, means):\n    " + "\n    ".join(lines), scope)
    return scope["adams"]


@lru_cache
def gauss(count: int) -> list[tuple[float, float]]:
    """Nodes in [-1, 1] and weights of the Gauss-Legendre rule."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return list(zip(nodes.tolist(), weights.tolist(), strict=True))
