"""Gradients that have no derivative of their own, and say so.

``torch.autograd.function.once_differentiable`` does not do: it leaves a gradient without a graph
where that of the loss is a constant, and ties it to no input, so that a second derivative comes out
without its share and without an error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["once"]

Backward = Callable[..., tuple[Any, ...]]


def once(owner: str) -> Callable[[Backward], Backward]:
    """Decorate the backward pass of an autograd function: it is run without a graph.

    With ``create_graph=True`` the gradients found hang on the gradients given and on the tensors
    saved, which must depend on every input, by a node that raises.

    Parameters
    ----------
    owner
        What has no second derivative, for the message.
    """
    message = (
        f"{owner} has first derivatives only; for second ones use pf.odeint with "
        "options={'gradients': 'checkpoint'} or 'direct'"
    )

    def decorated(backward: Backward) -> Backward:
        @wraps(backward)
        def run(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            with torch.no_grad():
                found = backward(ctx, *grads)
            if not torch.is_grad_enabled():
                return found
            own = [grad for grad in found if isinstance(grad, Tensor)]
            tied = iter(_Refusal.apply(message, len(own), *own, *grads, *ctx.saved_tensors))
            return tuple(next(tied) if isinstance(grad, Tensor) else grad for grad in found)

        return run

    return decorated


class _Refusal(torch.autograd.Function):
    """The first ``count`` tensors; their derivative raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(message: str, count: int, *tensors: Any) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(ctx.message)
