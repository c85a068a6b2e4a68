r"""The adjoint of an SDE as an SDE of its own, run along the reversed path.

Li, Wong, Chen and Duvenaud 2020 ("Scalable gradients for stochastic differential equations",
theorem 3.1); Kidger 2021 (thesis, section 5.1). In the clock r = -t and for
:math:`dY = f\,dr + \sum_j g_j \circ dW^j` (the SDE mirrored, see
:func:`probflow.sde.parts.mirrored`), the gradients a by the state and p by the parameters follow

.. math:: da = -(\partial_y f)^T a\,dr - (\partial_y g_j)^T a \circ dW^j, \qquad
          dp = -(\partial_\theta f)^T a\,dr - (\partial_\theta g_j)^T a \circ dW^j.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probflow.sde.system import System, gradients

__all__ = ["AdjointSystem"]


class AdjointSystem(System):
    r"""What the methods ask of the adjoint SDE. Its state is flat: (y, a, p), one axis.

    All parts of an increment come from one reverse pass: the methods ask for h f + g w at once.

    Write :math:`G_j = (g_j, -(\partial_y g_j)^T a, -(\partial_\theta g_j)^T a)` for its diffusion
    and q for the columns :math:`q_j = (\partial_y g_j)^T a`. Then
    :math:`(\partial G_j) G_j = ((\partial g_j) g_j,\; P_j - M_j)` with
    :math:`P_j = \partial_{(y, \theta)} \langle g_j, \bar q_j \rangle` and
    :math:`M_j = \partial_{(y, \theta)} \langle q_j, \bar g_j \rangle`, bars meaning constants. An
    Ito SDE and a method for Ito SDEs each move half of these between drift and noise.

    Parameters
    ----------
    mirror
        The SDE in the clock r = -t.
    ito
        Whether the method that solves the adjoint is one for Ito SDEs.
    params
        Tensors whose gradients are formed.
    shape
        Of the state y.
    """

    def __init__(
        self, mirror: System, ito: bool, params: Sequence[Tensor], shape: Sequence[int]
    ) -> None:
        self.mirror, self.params, self.shape = mirror, tuple(params), tuple(shape)
        self._later = None
        self.ito, self.forward_ito = ito, mirror.sde_type == "ito"
        self.sde_type = "ito" if ito else "stratonovich"
        # The diffusion of a is linear in a, even where that of y is constant.
        self.additive = mirror.noise_type == "additive"
        self.noise_type = "general" if self.additive else mirror.noise_type
        self.diagonal = mirror.diagonal
        self.corrected = not self.additive and (ito or self.forward_ito)
        self.size = torch.Size(self.shape).numel()

    def sharing(self, t: Tensor, z: Tensor) -> System:
        """The system itself: drift and noise of a step are one product with a Jacobian."""
        return self

    def join(self, y: Tensor, a: Tensor, p: Sequence[Tensor]) -> Tensor:
        """The flat state."""
        return torch.cat([x.reshape(-1) for x in (y, a, *p)])

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(y, a): the state as a leaf to differentiate by, and its gradient."""
        y = z[: self.size].reshape(self.shape).detach().requires_grad_()
        return y, z[self.size : 2 * self.size].reshape(self.shape)

    def gradients(self, z: Tensor) -> list[Tensor]:
        """The parts a and p of the flat state."""
        parts = z[self.size :].split([self.size, *(p.numel() for p in self.params)])
        shapes = (self.shape, *(p.shape for p in self.params))
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def increment(self, t: Tensor, z: Tensor, h: float, w: Tensor) -> Tensor:
        """Drift times h plus diffusion times w, in the flat state."""
        return self._increment(t, z, h, w, None)

    def milstein(self, t: Tensor, z: Tensor, h: float, w: Tensor, v: Tensor) -> Tensor:
        r"""The increment and :math:`\sum_j v_j (\partial G_j) G_j`."""
        return self._increment(t, z, h, w, v)

    def f_and_g_prod(self, t: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Drift, and diffusion times v, in the flat state."""
        zero = torch.zeros_like(v)
        return self._increment(t, z, 1.0, zero, None), self.g_prod(t, z, v)

    def g_prod(self, t: Tensor, z: Tensor, v: Tensor) -> Tensor:
        """Diffusion times v, in the flat state."""
        y, a = self.split(z)
        with torch.enable_grad():
            return self._pull_back(self.mirror.g_prod(t, y, v), y, a)

    def _increment(self, t: Tensor, z: Tensor, h: float, w: Tensor, v: Tensor | None) -> Tensor:
        y, a = self.split(z)
        with torch.enable_grad():
            if not self.corrected and v is None:
                return self._pull_back(self.mirror.increment(t, y, h, w), y, a)
            f, g = self.mirror.f_and_g(t, y)
            change = self._pull_back(self.mirror.prod(g, w).add(f, alpha=h), y, a)
            if self.corrected:
                moved = (self.forward_ito + self.ito) / 2.0
                along, product, mixed = self._second(g, y, a, h)
                product = product * ((self.ito - self.forward_ito) / 2.0)
                change = change + torch.cat((moved * along, product - moved * mixed))
            if v is not None:
                along, product, mixed = self._second(g, y, a, v)
                change = change + torch.cat((along, product - mixed))
        return change

    def _pull_back(self, step: Tensor, y: Tensor, a: Tensor) -> Tensor:
        """(step, -its gradients against a)."""
        found = gradients(step, (y, *self.params), -a, False)
        return self.join(step.detach(), found[0], found[1:])

    def _second(
        self, g: Tensor, y: Tensor, a: Tensor, v: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Sums over j, weighted by v, of :math:`(\partial g_j) g_j`, :math:`P_j`, :math:`M_j`."""
        if self.diagonal:
            (q,) = gradients(g, (y,), a, True)
        else:
            columns = [gradients(column, (y,), a, True)[0] for column in g.unbind(-1)]
            q = torch.stack(columns, dim=-1)
        along = self.mirror.itself(g, y, v, False)
        if not self.diagonal and isinstance(v, Tensor):
            v = v.reshape(len(v), *(1,) * (g.ndim - 2), -1)
        inputs = (y, *self.params)
        product = gradients(g, inputs, v * q.detach(), False)
        mixed = gradients(q, inputs, v * g.detach(), False)
        flat = [torch.cat([x.reshape(-1) for x in parts]) for parts in (product, mixed)]
        return along.reshape(-1).detach(), flat[0], flat[1]
