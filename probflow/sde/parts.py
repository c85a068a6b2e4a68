r"""The functions of an SDE, and what is done to them before they are integrated.

``Parts`` are the functions a user's object has, under torchsde's names: ``f(t, y)`` drift,
``g(t, y)`` diffusion, ``h(t, y)`` prior drift, ``g_prod(t, y, v)`` = g v, and the pairs ``f_and_g``
and ``f_and_g_prod``. Running backward in time, half precision and the log-ratio are each one
transformation of the functions, so that no method needs to know of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.watch import Watch
from probflow.words import UnfitError, dictionary, near

__all__ = [
    "Parts",
    "checked",
    "flat",
    "mirrored",
    "parts_of",
    "rounded",
    "watched",
    "with_log_ratio",
]

Parts = dict[str, Callable[..., Any]]

_RENAMED = {
    "drift": "f",
    "diffusion": "g",
    "prior_drift": "h",
    "diffusion_prod": "g_prod",
    "drift_and_diffusion": "f_and_g",
    "drift_and_diffusion_prod": "f_and_g_prod",
}


def parts_of(sde: Any, names: Mapping[str, str] | None) -> Parts:
    """The functions of an object, looked up under other names where ``names`` gives them.

    Raises
    ------
    TypeError, ValueError
        For a key of ``names`` that is no role, a name that the object does not have, and an
        object without drift or diffusion.
    """
    attribute = {part: part for part in _RENAMED.values()}
    for role, name in dictionary(names, "names").items():
        if role not in _RENAMED:
            raise ValueError(
                f"names: {role!r} is no role of a function{near(role, _RENAMED)}; allowed: "
                + ", ".join(_RENAMED)
            )
        if not isinstance(name, str):
            raise TypeError(f"names: need the name of a method for the {role}, got {name!r}")
        if not callable(getattr(sde, name, None)):
            raise ValueError(f"names: {type(sde).__name__} has no method {name!r} for the {role}")
        attribute[_RENAMED[role]] = name
    parts = {part: getattr(sde, name, None) for part, name in attribute.items()}
    found = {part: function for part, function in parts.items() if callable(function)}
    if not found.keys() & {"f", "f_and_g", "f_and_g_prod"}:
        raise UnfitError(
            f"sde: {type(sde).__name__} has no drift; need f(t, y), f_and_g(t, y) or "
            "f_and_g_prod(t, y, v)"
        )
    if not found.keys() & {"g", "f_and_g", "g_prod", "f_and_g_prod"}:
        raise UnfitError(
            f"sde: {type(sde).__name__} has no diffusion; need g(t, y), f_and_g(t, y), "
            "g_prod(t, y, v) or f_and_g_prod(t, y, v)"
        )
    return found


def watched(parts: Parts, watch: Watch) -> Parts:
    """Functions whose outputs may be held while they, or others of them, are called."""

    def safe(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*tensors: Tensor) -> Any:
            output = function(*tensors)
            return watch(output) if isinstance(output, Tensor) else tuple(map(watch, output))

        return call

    return {part: safe(function) for part, function in parts.items()}


def rounded(parts: Parts, narrow: torch.dtype, wide: torch.dtype) -> Parts:
    """Functions of a model in one dtype for a state that is carried in another.

    With one dtype for both they bring outputs of other ones to it, as within ``torch.autocast``.
    """

    def narrowed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(t: Tensor, *tensors: Tensor) -> Any:
            output = function(t, *(x.to(narrow) for x in tensors))
            if isinstance(output, Tensor):
                return output.to(wide)
            return tuple(x.to(wide) for x in output)

        return call

    return {part: narrowed(function) for part, function in parts.items()}


def mirrored(parts: Parts) -> Parts:
    r"""Functions in the clock s = -t: :math:`dY = -f(-s, Y)\,ds + g(-s, Y)\,d\tilde W_s`."""

    def negative(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda s, *tensors: -function(-s, *tensors)

    def same(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda s, *tensors: function(-s, *tensors)

    def pair(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(s: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            drift, diffusion = function(-s, *tensors)
            return -drift, diffusion

        return call

    kinds = {"f": negative, "h": negative, "g": same, "g_prod": same}
    return {part: kinds.get(part, pair)(function) for part, function in parts.items()}


def flat(x: Tensor, columns: int = 0) -> Tensor:
    """(batch, ...) as (batch, n), n = 1 for (batch,); the last ``columns`` axes stay."""
    return x.unsqueeze(1) if x.ndim == 1 + columns else x.flatten(1, -1 - columns)


def with_log_ratio(parts: Parts, diagonal: bool, shape: torch.Size) -> Parts:
    r"""Functions of the flat state with the log-ratio of posterior and prior path as last column.

    By Girsanov's theorem its rate is :math:`\frac{1}{2} |u|^2` with :math:`g u = f - h` (Li, Wong,
    Chen, Duvenaud 2020, "Scalable gradients for stochastic differential equations", section 5).

    Parameters
    ----------
    parts
        With f and g (or f_and_g) and h.
    diagonal
        Whether g is diagonal: shape (batch, ...), otherwise (batch, ..., m).
    shape
        Of the user's state; the flat state is (batch, numel + 1).

    Raises
    ------
    ValueError
        If the prior drift ``h``, the drift or the diffusion itself is missing.
    """
    if "h" not in parts or not ("f_and_g" in parts or {"f", "g"} <= parts.keys()):
        raise ValueError("logqp: needs the functions f and g (or f_and_g) and the prior drift h")
    drift, diffusion, prior = parts.get("f"), parts.get("g"), parts["h"]
    both = parts.get("f_and_g") or (lambda t, y: (drift(t, y), diffusion(t, y)))  # type: ignore[misc]
    diffusion = diffusion or (lambda t, y: both(t, y)[1])

    def state(z: Tensor) -> Tensor:
        return z[:, :-1].reshape(shape)

    def with_zeros(g: Tensor) -> Tensor:
        if diagonal:
            return torch.nn.functional.pad(flat(g), (0, 1))
        return torch.nn.functional.pad(flat(g, 1), (0, 0, 0, 1))

    def f_and_g(t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        y = state(z)
        f, g = both(t, y)
        gap = flat(f - prior(t, y))
        if diagonal:
            u = gap / _away_from_zero(flat(g))
        else:
            u = (torch.linalg.pinv(flat(g, 1)) * gap[:, None]).sum(-1)  # not @: autocast rounds
        rate = 0.5 * (u * u).sum(dim=1, keepdim=True)
        return torch.cat((flat(f), rate), dim=1), with_zeros(g)

    return {
        "f_and_g": f_and_g,
        "f": lambda t, z: f_and_g(t, z)[0],
        "g": lambda t, z: with_zeros(diffusion(t, state(z))),
    }


def _away_from_zero(g: Tensor, smallest: float = 1e-7) -> Tensor:
    return torch.where(g.detach().abs() > smallest, g, torch.full_like(g, smallest).copysign(g))


def checked(
    parts: Parts,
    y0: Tensor,
    noise: tuple[int, ...] | None,
    diagonal: bool,
    dtypes: set[torch.dtype] | None = None,
) -> Parts:
    """Functions that look at what they return, and bring it to the state's dtype.

    Parameters
    ----------
    parts, y0
        The functions, and the state in the dtype that it is carried in.
    noise
        Shape of the Brownian motion, (batch, m); ``None`` while it is unknown.
    diagonal
        Whether g is diagonal.
    dtypes
        Where to put the dtypes seen.
    """

    def fits(output: Any, what: str, full: bool) -> Tensor:
        shape: tuple[int, ...] = tuple(y0.shape)
        if full and not diagonal:
            shape = (*shape, noise[-1] if noise else -1)
        if not isinstance(output, Tensor):
            raise TypeError(f"sde: {what} must be a tensor, got {type(output).__name__}")
        got = tuple(output.shape)
        if got != shape and not (shape[-1] == -1 and got[:-1] == shape[:-1]):
            wanted = str(shape).replace("-1", "m")
            raise ValueError(f"sde: {what} must have shape {wanted}, got {got}")
        if output.is_complex() or output.device != y0.device:
            raise ValueError(
                f"sde: {what} must be real, on {y0.device} like the state, got {output.dtype} on "
                f"{output.device}"
            )
        if dtypes is not None:
            dtypes.add(output.dtype)
        return output.to(y0.dtype)

    what = {"f": "the drift f", "h": "the prior drift h", "g": "the diffusion g"}
    what["g_prod"] = "the diffusion-vector product g_prod"

    def one(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *tensors: fits(function(*tensors), what[part], part == "g")

    def pair(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        second = part.removeprefix("f_and_")

        def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            output = function(*tensors)
            if not isinstance(output, (tuple, list)) or len(output) != 2:
                raise TypeError(f"sde: {part} must return two tensors, got {output!r}")
            return (
                fits(output[0], f"the drift of {part}", False),
                fits(output[1], f"{what[second]} of {part}", second == "g"),
            )

        return call

    return {
        part: (one if part in what else pair)(part, function) for part, function in parts.items()
    }
