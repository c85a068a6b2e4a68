"""Whether a transform of torch.func, or a graph that is traced, hides what tensors hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["hidden", "outside", "transformed"]


def transformed() -> bool:
    """Whether values may be hidden: in a transform of torch.func, or while a graph is traced."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None


@contextmanager
def outside() -> Iterator[None]:
    """Outside all transforms of torch.func and inference mode: what is made here may be kept.

    Within a transform it would be a wrapper that ends with it, and what was made before could not
    be written on. No tensor of a transform can be used here.
    """
    layers = []
    try:
        if not torch.compiler.is_compiling():
            while torch._C._functorch.peek_interpreter_stack() is not None:
                layers.append(torch._C._functorch.pop_dynamic_layer_stack())
        with torch.inference_mode(False):
            yield
    finally:
        while layers:
            torch._C._functorch.push_dynamic_layer_stack(layers.pop())


def hidden(x: Tensor) -> bool:
    """Whether torch.func.vmap hides the values of a tensor."""
    if torch.compiler.is_compiling() or not transformed():
        return False
    try:
        x.detach().reshape(-1)[:1].tolist()
    except RuntimeError:
        return True
    return False
