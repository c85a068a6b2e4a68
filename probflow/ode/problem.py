"""What the user gives, made ready for the solvers: one function of one tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.grid import host_times
from probflow.integrate.loop import NonFiniteError, finite_samples, sample_name
from probflow.integrate.transforms import hidden
from probflow.integrate.watch import Watch
from probflow.models import time_dtype
from probflow.words import dictionary

__all__ = ["BAD_START", "Layout", "Problem", "host_outputs", "traced"]

BAD_START = "y0: the initial state holds NaN or infinity"


def traced(t: Any) -> bool:
    """Whether times cannot be read to the host without losing what the caller wants of them."""
    if not isinstance(t, Tensor):
        return False
    if torch.compiler.is_compiling():
        return True
    if t.requires_grad and torch.is_grad_enabled():
        return True
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(t))


def host_outputs(t: Any, bounded: bool = True) -> list[float]:
    """Output times on the host; their gradients are attached elsewhere.

    Those after the first may be infinite unless they are to be ``bounded``.

    Raises
    ------
    TypeError, ValueError
        As :func:`~probflow.integrate.grid.host_times`, and for times that differ within a
        ``torch.func.vmap``.
    """
    if isinstance(t, Tensor):
        if hidden(t):
            raise ValueError(
                "t: torch.func.vmap hides the times, and these steps depend on them; give times "
                "that all have in common, or fixed steps from each time to the next"
            )
        t = t.detach()
    return host_times(t, "t", bounded=bounded)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype is dtype else x.to(dtype)  # which costs as much as a small sum


class Layout:
    """How the user's state, a tensor or a tuple of tensors, lies in the solver's tensor.

    Parameters
    ----------
    y0
        The user's state.
    per_sample
        Keep the first axis, the batch, apart: a tuple becomes (batch, size) instead of (size,).

    Raises
    ------
    TypeError
        Unless ``y0`` is a floating-point or complex tensor, or a tuple of them.
    ValueError
        For an empty tuple; where samples are kept apart, for an empty batch or parts of different
        batch sizes.
    """

    def __init__(self, y0: Any, per_sample: bool = False) -> None:
        parts = y0 if isinstance(y0, tuple) else (y0,)
        for part in parts:
            if not isinstance(part, Tensor):
                raise TypeError(
                    f"y0: need a tensor or a tuple of tensors, got {type(part).__name__}"
                    + (" in a tuple" if isinstance(y0, tuple) else "")
                )
            if not (part.is_floating_point() or part.is_complex()):
                raise TypeError(
                    f"y0: need floating-point or complex numbers, got a tensor of {part.dtype}"
                )
        if not parts:
            raise ValueError("y0: need at least one tensor in the tuple")
        if per_sample and (
            any(part.ndim < 1 for part in parts) or len({len(part) for part in parts}) > 1
        ):
            raise ValueError(
                "y0: with per_sample every tensor needs the batch as its first axis, got shapes "
                + ", ".join(str(tuple(part.shape)) for part in parts)
            )
        if per_sample and not len(parts[0]):
            raise ValueError("y0: with per_sample need at least one sample, got an empty batch")
        self.is_tuple, self.lead = isinstance(y0, tuple), int(per_sample)
        self.shapes = [part.shape for part in parts]
        self.sizes = [part.shape[self.lead :].numel() for part in parts]

    def join(self, state: Any) -> Tensor:
        """The solver's tensor."""
        if not self.is_tuple:
            return state
        return torch.cat(
            [part.reshape((*part.shape[: self.lead], -1)) for part in state], dim=self.lead
        )

    def split(self, state: Tensor, before: int = 0) -> Any:
        """The user's state, with ``before`` more axes in front."""
        if not self.is_tuple:
            return state
        # Not ``split``, whose results cannot be written on where there is a graph.
        lead, axis, parts, start = state.shape[:before], before + self.lead, [], 0
        for size, shape in zip(self.sizes, self.shapes, strict=True):
            parts.append(state.narrow(axis, start, size).reshape((*lead, *shape)))
            start += size
        return tuple(parts)


def _unpacked(output: Any) -> Any:
    """Slopes of the parts of a state that come one by one; one tensor is a mistake."""
    single = isinstance(output, Tensor) or not isinstance(output, Iterable)
    return output if single else tuple(output)


class Problem:
    """The user's function as ``func(t, y)`` on the solver's tensor, counting evaluations.

    Half-precision states are carried in float32 and rounded for the function. The first output is
    checked against the state; one that differs by axes of length 1, or is one number for all
    elements, is brought to its shape. A function may return the same memory again and again,
    overwritten: see :class:`~probflow.integrate.watch.Watch`.

    Parameters
    ----------
    func
        ``func(t, y, *args, **kwargs)``.
    y0
        The user's state.
    args, kwargs
        Further arguments of ``func``.
    per_sample
        See :class:`Layout`.
    held
        How many outputs a method holds at once; none holds more than 20.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        y0: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        per_sample: bool = False,
        held: int = 20,
    ) -> None:
        if not isinstance(args, (tuple, list)):
            raise TypeError(f"args: need a tuple of further arguments of func, got {args!r}")
        self.user, self.args, self.kwargs = func, tuple(args), dictionary(kwargs, "kwargs")
        self.layout = Layout(y0, per_sample)
        narrow = self.layout.join(y0)
        if not torch.compiler.is_compiling() and narrow.is_inference():
            narrow = narrow.clone()  # outside inference mode: one that can be part of a graph
        self.dtype = narrow.dtype
        self.wide = torch.promote_types(narrow.dtype, torch.float32)
        self.time_dtype = time_dtype(narrow.dtype)
        self.y0 = self.given = _cast(narrow, self.wide)  # y0 may be moved with the first time
        self.nfe = 0
        self.observer: Callable[[Tensor, Tensor], None] | None = None  # of times and outputs
        self._watch = Watch(held)
        self._checked = self._same_dtype = self._same_shape = False

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative at ``t`` and ``y``, in the solver's layout and dtype."""
        self.nfe += 1
        state = _cast(y, self.dtype)
        given = self.layout.split(state) if self.layout.is_tuple else state
        output = self.user(t, given, *self.args, **self.kwargs)
        if self.layout.is_tuple and not isinstance(output, (tuple, list)):
            output = _unpacked(output)
        if not self._checked:
            self._look(output, given)
        if self.layout.is_tuple:
            output = self.layout.join(output)  # a copy
        else:
            if not self._same_shape:
                output = output.reshape(y.shape) if output.ndim else output.expand(y.shape)
            if self._watch.copying:
                output = self._watch(output)
        output = _cast(output, self.wide)
        if self.observer is not None:
            self.observer(t, output)
        return output

    @property
    def direct(self) -> Callable[..., Any]:
        """The user's own function where nothing needs to be done around it, else this object.

        Only once the first outputs have been checked; its evaluations are not counted.
        """
        plain = not (self.layout.is_tuple or self.args or self.kwargs) and self.wide is self.dtype
        plain = plain and self._same_dtype and self._same_shape and not self._watch.copying
        return self.user if plain else self

    def result(self, states: Tensor) -> Any:
        """States (m, ...) as the user's: dtype, and a tuple where it was one."""
        return self.layout.split(_cast(states, self.dtype), before=1)

    def state(self, y: Tensor) -> Any:
        """One state as the user's."""
        return self.layout.split(y.to(self.dtype))

    def callback(self, name: str) -> Callable[[float, Tensor, float], None] | None:
        """The user's ``func.<name>(t0, y0, dt)``, called with floats and the solver's tensor.

        As in torchdiffeq, ``dt`` is positive in either direction of time.
        """
        function = getattr(self.user, name, None)
        if function is None:
            return None

        def call(t: float, y: Tensor, dt: float) -> None:
            both = torch.tensor([t, abs(dt)], dtype=torch.float64, device="cpu")
            time, step = both.unbind(0)
            function(time, self.state(y), step)

        return call

    def finite(self, y: Tensor) -> Tensor:
        """Whether all numbers of a sample are finite, for each sample of each part, one vector."""
        if not self.layout.is_tuple:
            return finite_samples(y)
        flags = torch.isfinite(y)
        if self.layout.lead:
            return flags.all(1)
        parts = self.layout.split(flags)
        return torch.cat([p.reshape(len(p) if p.ndim else 1, -1).all(1) for p in parts])

    def sample(self, number: int) -> str:
        """``", sample 3"``: what an entry of :meth:`finite` is called; empty for a 0-d state."""
        shapes = self.layout.shapes
        if self.layout.lead or not self.layout.is_tuple:
            return sample_name(number) if shapes[0] else ""
        for part, shape in enumerate(shapes):
            count = shape[0] if shape else 1
            if number < count:
                return (sample_name(number) if shape else "") + f" of part {part}"
            number -= count
        return ""

    def first_bad(self, y: Tensor) -> str:
        """The first sample of a state that is not finite, as :meth:`sample`."""
        good = self.finite(y).tolist()
        return self.sample(good.index(False)) if False in good else ""

    def check_start(self) -> None:
        """Raise ``NonFiniteError`` if the state that was given is not finite; waits for it."""
        if not bool(torch.isfinite(self.given).all()):
            raise NonFiniteError(BAD_START + self.first_bad(self.given))

    def _look(self, output: Any, state: Any) -> None:
        """Learn from the first output what has to be done with every one."""
        self._check(output, state)
        self._checked = True
        if not self.layout.is_tuple:
            self._same_dtype = output.dtype is self.wide
            self._same_shape = output.shape == state.shape

    def _fits(self, output: Tensor, part: Tensor) -> bool:
        """Whether an output, without axes of length 1, has the shape of its part of the state."""
        if output.shape == part.shape:
            return True
        lead = self.layout.lead
        shapes = [[n for n in x.shape[lead:] if n != 1] for x in (output, part)]
        if output.ndim == 0 and not self.layout.is_tuple:
            return True
        return output.shape[:lead] == part.shape[:lead] and shapes[0] == shapes[1]

    def _check(self, output: Any, state: Any) -> None:
        outputs = output if self.layout.is_tuple else (output,)
        states = state if self.layout.is_tuple else (state,)
        if not isinstance(outputs, (tuple, list)) or len(outputs) != len(states):
            raise TypeError(
                f"func: must return a tuple of {len(states)} tensors, one for each of the state, "
                f"returned {type(output).__name__}"
            )
        for given, part in zip(outputs, states, strict=True):
            if not isinstance(given, Tensor):
                raise TypeError(f"func: must return a tensor, returned {type(given).__name__}")
            if not self._fits(given, part):
                raise ValueError(
                    f"func: must return the state's shape {tuple(part.shape)}, returned "
                    f"{tuple(given.shape)}"
                )
            if given.is_complex() and not part.is_complex():
                raise ValueError(
                    f"func: returned {given.dtype} for a state of {part.dtype}; make y0 complex"
                )
            if given.device != part.device:
                raise ValueError(
                    f"func: must return a tensor on the state's device {part.device}, returned "
                    f"one on {given.device}"
                )
