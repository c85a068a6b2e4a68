r"""Step-size control: options, error norms, the PID controller and the first step.

After a step whose estimated error is :math:`e_n` tolerances, the length h is multiplied by
:math:`\epsilon_n^{-(p+i+d)/k} \epsilon_{n-1}^{(p+2d)/k} \epsilon_{n-2}^{-d/k}`, within bounds, with
:math:`\epsilon = e / \text{safety}^k` and k the order of the estimate plus 1 (Soderlind 2003,
Digital filters in adaptive time-stepping). Whatever p, i and d are, lengths thus rest where the
error is :math:`\text{safety}^k` tolerances. (p, i, d) = (0, 1, 0) is the controller of torchdiffeq.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probflow.ode.problem import Problem
from probflow.words import check_real

__all__ = ["CONTROLLERS", "Control"]

#: Names of (p, i, d); "pi" and "pid" are PI-4-2-like and H312.
CONTROLLERS = {"i": (0.0, 1.0, 0.0), "pi": (0.4, 0.3, 0.0), "pid": (1 / 18, 1 / 9, 1 / 18)}

Norm = Callable[[Any], Any]


@dataclass(frozen=True)
class Control:
    """Options of the adaptive methods; names, meanings and defaults are torchdiffeq's.

    Attributes
    ----------
    rtol, atol
        Relative and absolute tolerance: numbers, or tensors that broadcast against the state.
    first_step
        Length of the first step, > 0; by default chosen by Hairer's rule.
    min_step, max_step
        Bounds of the length. A step as short as ``min_step`` is accepted whatever its error.
    safety, ifactor, dfactor
        The next length aims at an error of ``safety**k`` tolerances with every controller, k the
        order of the estimate plus 1; it is at most ``ifactor`` and at least ``dfactor`` times the
        last. As in torchdiffeq ``safety`` may be any number > 0:
        above 1 more steps are rejected, each accepted one still meets the tolerances.
    max_num_steps
        Largest number of steps tried in the whole call (torchdiffeq: for each output interval).
    step_t, jump_t
        Times to land on; at a ``jump_t`` the function is evaluated on both sides.
    norm
        Norm of the scaled error: a function of a tensor shaped as the state (of the tuple, for a
        tuple); by default the root mean square (of a tuple, its largest).
    controller
        ``"i"``, ``"pi"``, ``"pid"`` or a tuple (p, i, d).
    """

    rtol: Any = 1e-7
    atol: Any = 1e-9
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = math.inf
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    max_num_steps: int = 2**31 - 1
    step_t: tuple[float, ...] = ()
    jump_t: tuple[float, ...] = ()
    norm: Norm | None = None
    controller: tuple[float, float, float] = CONTROLLERS["i"]

    @property
    def shares(self) -> tuple[float, float, float]:
        """What e_n, e_(n-1), e_(n-2) count for: (safety / e**(1/k)) to these powers."""
        p, i, d = self.controller
        return p + i + d, -(p + 2 * d), d

    def factor(self, errors: Sequence[float], order: int) -> float:
        """By what to multiply the step length; ``errors`` are the latest first.

        A rejected step and the first steps use what there is of the history.

        Parameters
        ----------
        errors
            Scaled errors of the steps tried, the latest first; one or more.
        order
            That of the error estimate.

        Returns
        -------
        float
            In [dfactor, ifactor].
        """
        latest = errors[0]
        if not math.isfinite(latest):
            return self.dfactor
        if latest == 0.0:
            return self.ifactor
        factor = 1.0
        for error, share in zip(errors, self.shares, strict=False):
            if share != 0.0:
                factor *= self.safety**share * max(error, 1e-12) ** (-share / (order + 1))
        # As torchdiffeq: without memory, a step that was good enough is never shortened.
        keep = latest < 1.0 and self.controller[0] == self.controller[2] == 0.0
        highest = 0.9 if latest > 1.0 else self.ifactor  # a repeated step is shorter
        return min(highest, max(factor, 1.0 if keep else self.dfactor))


_INTERVALS = {
    "first_step": "(0, inf]",
    "min_step": "[0, inf]",
    "max_step": "(0, inf]",
    "safety": "(0, inf]",
    "ifactor": "[1, inf]",
    "dfactor": "(0, 1)",
}


def control(options: Mapping[str, Any], rtol: Any, atol: Any, problem: Problem) -> Control:
    """The options of a call, checked.

    Raises
    ------
    TypeError, ValueError
        For a value of the wrong kind or out of range, by name.
    """
    settings: dict[str, Any] = {}
    for name, interval in _INTERVALS.items():
        if options.get(name) is not None:
            settings[name] = check_real(name, options[name], interval)
    if settings.get("min_step", 0.0) > settings.get("max_step", math.inf):
        raise ValueError("min_step, max_step: the smallest step is larger than the largest")
    if "max_num_steps" in options:
        count = check_real("max_num_steps", options["max_num_steps"])
        if count < 1.0 or not count.is_integer():
            raise ValueError(f"max_num_steps: need a whole number >= 1, got {count:g}")
        settings["max_num_steps"] = int(count)
    for name in ("step_t", "jump_t"):
        if options.get(name) is not None:
            settings[name] = _times(name, options[name])
    if len({*settings.get("step_t", ()), *settings.get("jump_t", ())}) < len(
        settings.get("step_t", ())
    ) + len(settings.get("jump_t", ())):
        raise ValueError("step_t, jump_t: no time may be given twice")
    if options.get("norm") is not None:
        _check_norm(options["norm"], problem)
        settings["norm"] = options["norm"]
    if "controller" in options:
        settings["controller"] = _controller(options["controller"])
    if "dtype" in options and not (
        isinstance(options["dtype"], torch.dtype) and options["dtype"].is_floating_point
    ):
        raise TypeError(f"dtype: need a floating-point dtype, got {options['dtype']!r}")
    settings["rtol"], settings["atol"] = tolerances(rtol, atol, problem)
    return Control(**settings)


def tolerances(rtol: Any, atol: Any, problem: Problem, used: bool = True) -> tuple[Any, Any]:
    """Both tolerances as numbers, or as tensors that broadcast against the solver's state.

    Raises
    ------
    TypeError, ValueError
        For values that are none, or, where they are ``used``, numbers that are both 0.
    """
    both = tolerance("rtol", rtol, problem), tolerance("atol", atol, problem)
    if used and all(isinstance(value, float) and value == 0.0 for value in both):
        raise ValueError("rtol, atol: at least one of them must be positive, got 0 and 0")
    return both


def _times(name: str, value: Any) -> tuple[float, ...]:
    try:
        values = value.detach().tolist() if isinstance(value, Tensor) else value
        times = tuple(sorted(float(time) for time in values))
    except (TypeError, ValueError):
        raise TypeError(f"{name}: need a sequence of times, got {value!r}") from None
    if not all(map(math.isfinite, times)):
        raise ValueError(f"{name}: times must be finite, got {value!r}")
    return times


def _controller(value: Any) -> tuple[float, float, float]:
    if isinstance(value, str) and value.lower() in CONTROLLERS:
        return CONTROLLERS[value.lower()]
    if isinstance(value, (tuple, list)) and len(value) == 3:
        p, i, d = (check_real("controller", number) for number in value)
        return p, i, d
    raise ValueError(
        f"controller: got {value!r}, allowed are {', '.join(map(repr, CONTROLLERS))} or (p, i, d)"
    )


def tolerance(name: str, value: Any, problem: Problem) -> Any:
    """A number, or a tensor that broadcasts against the solver's state."""
    layout, like = problem.layout, problem.y0
    if not isinstance(value, (tuple, list)):
        return _one_tolerance(name, value, like)
    if not layout.is_tuple or len(value) != len(layout.shapes):
        raise ValueError(
            f"{name}: a tuple of tolerances needs a tuple state with as many tensors, got "
            f"{len(value)} for {len(layout.shapes)}"
        )
    states = zip(value, layout.split(like), strict=True)
    parts = [(_one_tolerance(name, one, y), y) for one, y in states]
    real = like.dtype.to_real()
    return layout.join(tuple(torch.zeros_like(y, dtype=real) + one for one, y in parts))


def _one_tolerance(name: str, value: Any, like: Tensor) -> Any:
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(f"{name}: a tolerance cannot require a gradient")
        if value.is_complex():
            raise TypeError(f"{name}: need real numbers, got a tensor of {value.dtype}")
        if value.ndim:
            value = value.to(like.device, like.dtype.to_real())
            if not _broadcasts(value, like):
                raise ValueError(
                    f"{name}: need a shape that broadcasts against the state's "
                    f"{tuple(like.shape)}, got {tuple(value.shape)}"
                )
            if not bool(((value >= 0.0) & torch.isfinite(value)).all()):
                raise ValueError(f"{name}: need finite numbers >= 0, got {value}")
            return value
    return check_real(name, value, "[0, inf)")


def _broadcasts(value: Tensor, like: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(value.shape, like.shape) == like.shape
    except RuntimeError:
        return False


def _check_norm(norm: Norm, problem: Problem) -> None:
    """Raise unless the norm of a state is one number, or one for each sample kept apart."""
    zero = torch.zeros_like(problem.y0)
    with torch.no_grad():
        found = norm(problem.layout.split(zero))
    if not isinstance(found, (Tensor, float, int)):
        raise TypeError(f"norm: must return a tensor, returned {type(found).__name__}")
    value = _as_tensor(found)
    if value.dtype == torch.bool:
        raise TypeError("norm: must return a real number, returned a bool")
    if not torch.compiler.is_compiling() and not bool(torch.isfinite(value).all()):
        raise ValueError(f"norm: must return 0 for an error of 0, returned {value.tolist()}")
    lead = problem.layout.lead
    if value.numel() != 1 if not lead else value.shape != zero.shape[:1]:
        wanted = f"one for each of {len(zero)} samples" if lead else "one number"
        raise ValueError(f"norm: must return {wanted}, returned shape {tuple(value.shape)}")


# Norms ------------------------------------------------------------------------------------------


def error_norm(problem: Problem, norm: Norm | None) -> Callable[[Tensor], Tensor]:
    """Norm of a scaled error, a 0-d tensor; with samples apart (batch,)."""
    layout = problem.layout
    if norm is not None:
        user, shape = norm, (-1,) if layout.lead else ()
        return lambda error: _as_tensor(user(layout.split(error))).abs().reshape(shape)
    if layout.lead:
        return _rms_rows if not layout.is_tuple else lambda e: _largest_rows(e, layout.sizes)
    if layout.is_tuple:
        return lambda error: _largest(error, layout.sizes)
    return _rms


def _as_tensor(value: Any) -> Tensor:
    """A norm that may be a number, whatever torch's default device is."""
    return value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")


def _rms(error: Tensor) -> Tensor:
    return torch.linalg.vector_norm(error).mul_(1.0 / math.sqrt(max(1, error.numel())))


def _largest(error: Tensor, sizes: Sequence[int]) -> Tensor:
    return torch.stack([_rms(part) for part in error.split(list(sizes)) if part.numel()]).max()


def _rms_rows(error: Tensor) -> Tensor:
    rows = error.reshape(len(error), -1)
    return torch.linalg.vector_norm(rows, dim=1) * (1.0 / math.sqrt(max(1, rows.shape[1])))


def _largest_rows(error: Tensor, sizes: Sequence[int]) -> Tensor:
    parts = error.split(list(sizes), dim=1)
    return torch.stack([_rms_rows(part) for part in parts if part.numel()]).amax(0)


def scaled(error: Tensor, rtol: Any, atol: Any, y: Tensor, after: Tensor) -> Tensor:
    """The error in units of ``atol + rtol max(|y|, |y'|)``, in place."""
    scale = torch.maximum(y.abs(), after.abs()).mul_(rtol).add_(atol)
    return error.div_(positive(scale, atol))


def positive(scale: Tensor, atol: Any) -> Tensor:
    """A scale that divides an error of 0 to 0, where no absolute tolerance makes it positive."""
    if isinstance(atol, float) and atol > 0.0:
        return scale
    return scale.clamp_min_(torch.finfo(scale.dtype).tiny)


def seventh_order(fifth: Tensor, third: Tensor) -> Tensor:
    """DOP853: the estimates of order 5 and 3 make one of order 7; 0 where both are."""
    both = torch.hypot(fifth, 0.1 * third)
    return fifth * (fifth / both.clamp_min(torch.finfo(both.dtype).tiny))
