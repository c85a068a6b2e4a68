"""Models: what the user has, a callable with a declared prediction type and time convention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from probflow.plan import PREDICTIONS, conversion
from probflow.processes import Process
from probflow.words import check_choice

__all__ = ["Model", "load_network"]


class _Levels(NamedTuple):
    t: Tensor
    alpha: Tensor
    sigma: Tensor


class Model(torch.nn.Module):
    """A denoiser: a callable ``function(x, time, **kwargs)``, its process and prediction type.

    Parameters
    ----------
    function
        Any callable (a ``torch.nn.Module``'s parameters are found through this model). It gets
        the state, shape (batch, ...), and the time as a (batch,) tensor in the model's own
        convention, float32 for half-precision states and the state's dtype otherwise. It returns a
        tensor of the state's shape, dtype and device.
    process
        The noising process that it was trained on.
    prediction
        ``"eps"``, ``"x0"``, ``"v"``, ``"score"`` or ``"velocity"``:
        see :func:`probflow.plan.prediction_weights`.
    time
        Maps process time to the model's time, for float64 numpy arrays and tensors alike, for
        example ``lambda t: 1000 * t``. By default they are the same.
    kwargs
        Conditioning, passed on at every call.

    Raises
    ------
    TypeError
        If ``function`` is not callable or ``process`` is not a process.
    ValueError
        For an unknown prediction type.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        process: Process,
        prediction: str = "eps",
        *,
        time: Callable[[Any], Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"function: need a callable f(x, t), got {type(function).__name__}")
        if not isinstance(process, Process):
            raise TypeError(
                f"process: need a probflow process such as pf.VP.linear(), got {process!r}"
            )
        check_choice("prediction", prediction, PREDICTIONS)
        self.function, self.process, self.prediction = function, process, prediction
        self.time, self.kwargs = time, dict(kwargs or {})

    def as_prediction(self, prediction: str) -> Model:
        """A model of the same function with another prediction type.

        Parameters
        ----------
        prediction
            ``"eps"``, ``"x0"``, ``"v"``, ``"score"`` or ``"velocity"``.

        Returns
        -------
        Model
            This one if the type is its own.
        """
        if prediction == self.prediction:
            return self
        return Model(_Converted(self, prediction), self.process, prediction)

    def own_times(self, times: Sequence[float] | np.ndarray, dtype: torch.dtype) -> Tensor:
        """Process times in the model's convention, computed in float64 on the host.

        Parameters
        ----------
        times
            n process times.
        dtype
            Of the states.

        Returns
        -------
        Tensor
            (n,), on the CPU, in the dtype that times have for such states.

        Raises
        ------
        ValueError
            If the model's ``time`` does not return one time for each.
        """
        values = np.asarray(times, dtype=np.float64)
        if self.time is not None:
            values = np.asarray(self.time(values), dtype=np.float64)
            if values.shape != (len(times),):
                raise ValueError(
                    f"time: must map an array of shape ({len(times)},) to the same shape, "
                    f"got {values.shape}"
                )
        return torch.tensor(values, dtype=time_dtype(dtype))

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The model's raw output.

        Parameters
        ----------
        x
            State, (batch, ...).
        t
            Process time: a float, a 0-d tensor or a (batch,) tensor.

        Returns
        -------
        Tensor
            Shape and dtype of ``x``.

        Raises
        ------
        TypeError, ValueError
            If the function returns something else.
        """
        time = as_time(t, x)
        time = time if self.time is None else self.time(time)
        time = time.to(time_dtype(x.dtype)).expand(len(x))
        output = self.function(x, time, **self.kwargs)
        check_output(output, x)
        return output

    def predict(self, x: Tensor, t: Tensor | float, prediction: str) -> Tensor:
        """The output, converted to another prediction type.

        Parameters
        ----------
        x, t
            As those of :meth:`forward`.
        prediction
            As that of :meth:`as_prediction`.

        Returns
        -------
        Tensor
            Shape and dtype of ``x``.

        Raises
        ------
        ValueError
            For an unknown prediction type.
        """
        output = self(x, t)
        if prediction == self.prediction:
            return output
        time = as_time(t, x)
        time = time.reshape(-1, *(1,) * (x.ndim - 1)) if time.ndim else time
        levels = _Levels(time, self.process.alpha(time), self.process.sigma(time))
        of_input, of_output = conversion(self.process, self.prediction, prediction, levels)
        wide = torch.promote_types(x.dtype, torch.float32)
        result = torch.as_tensor(of_output, device=x.device).to(wide) * output
        return (result + torch.as_tensor(of_input, device=x.device).to(wide) * x).to(x.dtype)


class _Converted(torch.nn.Module):
    def __init__(self, model: Model, prediction: str) -> None:
        super().__init__()
        self.model, self.prediction = model, prediction

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The converted output at state ``x`` (batch, ...) and process time ``t`` (batch,)."""
        return self.model.predict(x, t, self.prediction)


def load_network(path: Path, name: str) -> Any:
    """The network f(x, t) of a ``torch.export`` (``.pt2``) or TorchScript file, on the CPU.

    Raises
    ------
    ValueError
        If there is no such file, or it is neither; the message begins with ``name``.
    """
    if not path.is_file():
        raise ValueError(f"{name}: there is no file {path}")
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path).module()
        return torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError, BadZipFile) as problem:
        first = str(problem).strip().splitlines()[0]
        raise ValueError(
            f"{name}: {path} is neither TorchScript nor torch.export ({first})"
        ) from None


def time_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of times for a state's dtype: at least float32, so that no two times collapse."""
    if dtype.is_complex:  # not ``to_real``, which a compiled graph cannot follow
        return torch.float64 if dtype is torch.complex128 else torch.float32
    return torch.promote_types(dtype, torch.float32)


def as_time(t: Tensor | float, x: Tensor) -> Tensor:
    """Times as a float64 tensor on the state's device (float32 where it has no float64)."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    return torch.as_tensor(t, dtype=dtype, device=x.device)


def check_output(output: Any, x: Tensor, name: str = "model") -> None:
    """Raise ``TypeError`` or ``ValueError`` if a model output does not fit the state ``x``."""
    if not isinstance(output, Tensor):
        raise TypeError(f"{name}: must return a tensor, returned {type(output).__name__}")
    if output.shape != x.shape:
        raise ValueError(
            f"{name}: must return the state's shape {tuple(x.shape)}, returned "
            f"{tuple(output.shape)}"
        )
    if output.dtype != x.dtype:
        raise ValueError(
            f"{name}: must return the state's dtype {x.dtype}, returned {output.dtype}"
        )
    if output.device != x.device:
        raise ValueError(
            f"{name}: must return a tensor on the state's device {x.device}, "
            f"returned one on {output.device}"
        )
