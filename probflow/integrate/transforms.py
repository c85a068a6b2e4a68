"""Whether a transform of torch.func, or a graph that is traced, hides what tensors hold."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["hidden", "transformed"]


def transformed() -> bool:
    """Whether values may be hidden: in a transform of torch.func, or while a graph is traced."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None


def hidden(x: Tensor) -> bool:
    """Whether torch.func.vmap hides the values of a tensor."""
    if torch.compiler.is_compiling() or not transformed():
        return False
    try:
        x.detach().reshape(-1)[:1].tolist()
    except RuntimeError:
        return True
    return False
