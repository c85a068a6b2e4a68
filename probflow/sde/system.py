r"""What the methods ask of an SDE: any object's functions, with the missing ones filled in.

Written for :math:`dY = f(t, Y)\,dt + g(t, Y)\,dW` with a state of shape (batch, ...). Noise has the
state's shape where it is diagonal, and shape (batch, m) otherwise, with g of shape
(batch, ..., m).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.transforms import transformed
from probflow.sde.parts import Parts, flat
from probflow.sde.settings import NOISE_TYPES

__all__ = ["System", "along_columns", "gradients"]


class System:
    r"""An SDE as the methods see it.

    Parameters
    ----------
    parts
        The functions the user's object has.
    sde_type, noise_type
        torchsde's words.
    later
        Makes the same SDE for the steps after the first, if that is another object.

    Attributes
    ----------
    f, g, g_prod, f_and_g, f_and_g_prod
        The five functions; the user's own where there are, otherwise made of those. A function
        that cannot be made raises ``TypeError`` when called.
    increment
        ``increment(t, y, h, w)`` = h f + g w, with a float h.
    """

    def __init__(
        self,
        parts: Parts,
        sde_type: str,
        noise_type: str,
        later: Callable[[], System] | None = None,
    ) -> None:
        self._later = later
        self.sde_type, self.noise_type = sde_type, noise_type
        self.diagonal = noise_type == NOISE_TYPES.diagonal
        self.parts = parts
        f, g, f_and_g = parts.get("f"), parts.get("g"), parts.get("f_and_g")
        if f_and_g is None and f is not None and g is not None:
            f_and_g = _both(f, g)
        if f_and_g is not None:
            f, g = f or _item(f_and_g, 0), g or _item(f_and_g, 1)
        products = {NOISE_TYPES.diagonal: _product, NOISE_TYPES.scalar: _scalar_product}
        self.prod: Callable[[Tensor, Tensor], Tensor] = products.get(noise_type, _matrix_product)
        self.f, self.g = f or self._missing("f"), g or self._missing("g")
        self.f_and_g = f_and_g or self._missing("f_and_g")
        self.g_prod = parts.get("g_prod") or self._g_prod
        self.f_and_g_prod = parts.get("f_and_g_prod") or self._f_and_g_prod
        self._tracked: bool | None = None  # whether g has parameters that ask for gradients
        self._separate = "f" in parts and ("g_prod" in parts or "f_and_g" not in parts)
        self.differentiable = self._differentiable

    def later(self) -> System:
        """The same SDE after the first step, without what is done to its functions there only."""
        return self if self._later is None else self._later()

    def sharing(self, t: Tensor, y: Tensor) -> System:
        """The same SDE, whose values at these very tensors are formed once for several steps."""
        values: dict[tuple[Any, ...], Any] = {}

        def once(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(s: Tensor, x: Tensor, *v: Tensor) -> Any:
                if s is not t or x is not y:
                    return function(s, x, *v)
                key = name, *map(id, v)
                if key not in values:
                    values[key] = function(s, x, *v), v  # held, so that its id stays its own
                return values[key][0]

            return call

        parts = {part: once(part, function) for part, function in self.parts.items()}
        same = System(parts, self.sde_type, self.noise_type, self._later)
        same.differentiable = once("differentiable", self._differentiable)
        return same

    def _missing(self, part: str) -> Callable[..., Any]:
        def call(*_: Any) -> Any:
            have = ", ".join(sorted(self.parts))
            raise TypeError(f"sde: this method needs the function {part}; the object has {have}")

        return call

    def _g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        if "g" not in self.parts and "f_and_g" not in self.parts:
            return self.f_and_g_prod(t, y, v)[1]
        return self.prod(self.g(t, y), v)

    def _f_and_g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self._separate:
            return self.f(t, y), self.g_prod(t, y, v)
        f, g = self.f_and_g(t, y)
        return f, self.prod(g, v)

    def products(self, t: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        """v -> g(t, y) v, from one diffusion for all v where the object has it."""
        if not {"g", "f_and_g"} & self.parts.keys():
            return lambda v: self.g_prod(t, y, v)
        g = self.g(t, y)
        return lambda v: self.prod(g, v)

    def increment(self, t: Tensor, y: Tensor, h: float, w: Tensor) -> Tensor:
        """h f(t, y) + g(t, y) w, shape of ``y``."""
        f, noise = self.f_and_g_prod(t, y, w)
        return noise.add(f, alpha=h)

    # Diffusions of one noise per component (diagonal) or for all (scalar), as factors ------------

    def factor(self, g: Tensor) -> Tensor:
        """The diffusion in the state's shape: g itself, or its only column."""
        return g if self.diagonal else g.squeeze(-1)

    def spread(self, v: Tensor, y: Tensor) -> Tensor:
        """Noise in a shape that multiplies the state's."""
        return v if self.diagonal else v.reshape(-1, *(1,) * (y.ndim - 1))

    # Derivatives of the diffusion ---------------------------------------------------------------

    def _differentiable(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, bool]:
        """(g, what to differentiate it by, whether the derivative needs a graph of its own).

        It needs one where gradients are on and either the state or a parameter in g asks for them;
        otherwise the graphs of all steps would hang together through the state.
        """
        if transformed() and not (y.requires_grad or torch.compiler.is_compiling()):
            raise ValueError(
                "method: its derivatives of the diffusion are not to be had within torch.func.vmap "
                "or jvp; take 'milstein' with options={'grad_free': True}, or a method without them"
            )
        with torch.inference_mode(False), torch.enable_grad():
            y = _recordable(y)
            x = y if y.requires_grad else y.detach().requires_grad_()
            g = self.g(_recordable(t), x)
        if not torch.is_grad_enabled() or y.requires_grad:
            return g, x, torch.is_grad_enabled()
        if self._tracked is None:
            self._tracked = _has_other_leaf(g, x)
        return g, x, self._tracked

    def milstein(self, t: Tensor, y: Tensor, h: float, w: Tensor, v: Tensor) -> Tensor:
        r"""h f + g w + :math:`\sum_j v_j (\partial g_j) g_j`, shape of ``y``."""
        if self.noise_type == NOISE_TYPES.additive:
            return self.increment(t, y, h, w)
        g, x, graph = self.differentiable(t, y)
        with torch.inference_mode(False), torch.enable_grad():
            second = self.itself(g, x, _recordable(v), graph)
        # The same values without the graph that only the derivative needed.
        g = g if graph else g.detach()
        return self.prod(g, w).add(self.f(t, y), alpha=h) + second

    def itself(self, g: Tensor, y: Tensor, v: Tensor | float, graph: bool) -> Tensor:
        r""":math:`\sum_j v_j (\partial g_j) g_j`: the diffusion along itself, shape of ``y``."""
        if self.diagonal:
            # Component i of g is a function of component i alone: a symmetric Jacobian.
            return gradients(g, (y,), g * v, graph)[0]
        if isinstance(v, Tensor):
            v = v.reshape(len(v), *(1,) * (g.ndim - 2), -1)
        return along_columns(g, y, g * v, graph)

    def levy(self, t: Tensor, y: Tensor, area: Tensor) -> Tensor:
        r""":math:`\sum_{k, l} (\partial g_l) g_k A_{kl}` for a Levy area (batch, m, m)."""
        g, x, graph = self.differentiable(t, y)
        with torch.inference_mode(False), torch.enable_grad():
            with torch.autocast(g.device.type, enabled=False):
                directions = (flat(g, 1) @ _recordable(area)).reshape(g.shape)
            return along_columns(g, x, directions, graph)


def _recordable(x: Tensor) -> Tensor:
    """``x``, or a copy if it was made in inference mode and so cannot be part of a graph."""
    return x.clone() if x.is_inference() else x


def _has_other_leaf(g: Tensor, x: Tensor) -> bool:
    """Whether the graph of ``g`` ends anywhere but in ``x``."""
    seen, todo = set(), [g.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", x) is not x:
            return True
        todo += [parent for parent, _ in node.next_functions]
    return False


def gradients(
    output: Tensor, inputs: tuple[Tensor, ...], weights: Tensor, graph: bool
) -> list[Tensor]:
    """Gradients of the sum of ``weights * output``; zeros for what it does not depend on."""
    if not output.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(
        output, inputs, weights, retain_graph=True, create_graph=graph, allow_unused=True
    )
    return [torch.zeros_like(x) if d is None else d for x, d in zip(inputs, found, strict=True)]


def along_columns(g: Tensor, y: Tensor, directions: Tensor, graph: bool) -> Tensor:
    r""":math:`\sum_l (\partial g_l / \partial y) d_l` for columns l of g (batch, ..., m).

    A Jacobian-vector product from two reverse passes: the first is linear in the weights c of the
    output, so its derivative by c is the Jacobian again.
    """
    total = torch.zeros_like(y)
    if not g.requires_grad:
        return total
    c = torch.zeros_like(g, requires_grad=True)
    (u,) = torch.autograd.grad(g, y, c, create_graph=True, allow_unused=True)
    if u is None or not u.requires_grad:
        return total
    for column, direction in enumerate(directions.unbind(-1)):
        (product,) = torch.autograd.grad(
            u, c, direction, retain_graph=True, create_graph=graph, allow_unused=True
        )
        if product is not None:
            total = total + product[..., column]
    return total


def _both(f: Callable[..., Any], g: Callable[..., Any]) -> Callable[..., Any]:
    return lambda t, y: (f(t, y), g(t, y))


def _item(function: Callable[..., Any], index: int) -> Callable[..., Any]:
    return lambda t, y: function(t, y)[index]


def _product(g: Tensor, v: Tensor) -> Tensor:
    return g * v


def _scalar_product(g: Tensor, v: Tensor) -> Tensor:
    return g.squeeze(-1) * v.reshape(-1, *(1,) * (g.ndim - 2))


def _matrix_product(g: Tensor, v: Tensor) -> Tensor:
    if g.ndim == 3 and not torch.is_autocast_enabled(g.device.type):  # which would round it
        return torch.bmm(g, v.unsqueeze(-1)).squeeze(-1)
    return (g * v.reshape(len(v), *(1,) * (g.ndim - 2), -1)).sum(-1)
