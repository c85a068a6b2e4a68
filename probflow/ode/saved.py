"""What all steppers have in common: their state, saved and restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from probflow.ode.problem import Problem
from probflow.tableaus import Tableau

__all__ = ["Stepper"]


class Stepper:
    """One solution that is advanced step by step, saved and restored.

    Attributes
    ----------
    problem, tableau
        Function and state, and the Runge-Kutta method of the steps.
    t, y
        Where the solution is; ``y`` is the solver's own tensor: the parts of a tuple in one vector,
        half precision in float32. Users read :attr:`state`.
    start, end
        Ends of the interval.
    accepted, rejected
        Number of steps.
    """

    problem: Problem
    tableau: Tableau
    t: Any
    y: Tensor
    start: Any
    end: Any
    accepted: int
    rejected: int

    @property
    def state(self) -> Any:
        """The state at ``t`` in the form of ``y0``: a tensor or a tuple of them, of its dtype."""
        return self.problem.state(self.y)

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.tableau.name

    @property
    def nfe(self) -> int:
        """Evaluations of the function so far; a restored stepper counts on."""
        return self.problem.nfe

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later, as names, numbers and tensors."""
        return {**self._identity(), **self._state(), "nfe": self.problem.nfe}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken.

        Parameters
        ----------
        state
            Of a stepper with the same method, interval, and shape, dtype and device of the state.

        Raises
        ------
        TypeError
            If ``state`` is no mapping.
        ValueError
            If keys are missing, or it belongs to another kind of stepper; this one stays as it is.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: need the dictionary of state_dict(), got {state!r}")
        identity = self._identity()
        differ = [
            f"{name} {state[name]!r} instead of {value!r}"
            for name, value in identity.items()
            if name in state and state[name] != value
        ]
        if differ:
            raise ValueError(f"state: of another stepper, with {', '.join(differ)}")
        missing = [name for name in (*identity, *self._state(), "nfe") if name not in state]
        if missing:
            raise ValueError(f"state: no {', '.join(missing)}; need the dictionary of state_dict()")
        y, own = state["y"], self.problem.y0
        for name in ("shape", "dtype", "device"):
            if getattr(y, name, None) != getattr(own, name):
                raise ValueError(
                    f"state: y has {name} {getattr(y, name, None)} instead of {getattr(own, name)}"
                )
        self._restore(state)
        self.problem.nfe = state["nfe"]

    def _identity(self) -> dict[str, Any]:
        """What a saved state and the stepper that goes on from it have in common."""
        shapes = [tuple(shape) for shape in self.problem.layout.shapes]
        return {
            "method": self.method,
            "shape": shapes if self.problem.layout.is_tuple else shapes[0],
            "dtype": str(self.problem.dtype),
            "t0": self.start,
            "t1": self.end,
        }

    def _state(self) -> dict[str, Any]:
        raise NotImplementedError

    def _restore(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError
