"""Names that tell the curves of a study apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from probflow.solvers import Solver, get_solver, solver_names

__all__ = ["check_distinct", "labelled"]

_PLAIN = (bool, int, float, str, type(None))


def check_distinct(what: str, names: Sequence[str], remedy: str) -> None:
    """Raise ``ValueError`` if a name is there twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{what}: {twice[0]} is given twice; {remedy}")


def labelled(solvers: Iterable[str | Solver]) -> list[Solver]:
    """Solvers whose names say their options: those that are not the default's, or not the others'.

    Raises
    ------
    ValueError
        For a solver that is given twice, and for options that no short text tells apart.

    Examples
    --------
    >>> two = [get_solver("dpm-solver-2", r1=r1) for r1 in (0.3, 0.9)]
    >>> [solver.name for solver in labelled(["ddim", *two])]
    ['ddim', 'dpm-solver-2 (r1=0.3)', 'dpm-solver-2 (r1=0.9)']
    >>> [solver.name for solver in labelled([get_solver("unipc-3", start="euler")])]
    ['unipc-3 (start=euler)']
    """
    found = [get_solver(solver) for solver in solvers]
    groups: dict[str, list[Solver]] = {}
    for solver in found:
        groups.setdefault(solver.name, []).append(solver)
    labels = [_label(solver, groups[solver.name]) for solver in found]
    check_distinct("solvers", labels, "name one with dataclasses.replace(solver, name=...)")
    return [
        solver if solver.name == label else replace(solver, name=label)
        for solver, label in zip(found, labels, strict=True)
    ]


def _label(solver: Solver, group: Sequence[Solver]) -> str:
    shown = []
    known = solver.name in solver_names(aliases=True)  # a user's own name says what he wants
    defaults = get_solver(solver.name).options if known else solver.options
    for key, value in solver.options.items():
        others = [other.options.get(key) for other in group]
        if all(repr(other) == repr(value) for other in [*others, defaults.get(key)]):
            continue
        if any(_text(other) == _text(value) and repr(other) != repr(value) for other in others):
            raise ValueError(
                f"solvers: several are named {solver.name} and differ in {key}, which makes no "
                "name; tell them apart with dataclasses.replace(solver, name=...)"
            )
        shown.append(f"{key}={_text(value)}")
    return f"{solver.name} ({', '.join(shown)})" if shown else solver.name


def _text(value: Any) -> str:
    """A value as a part of a name: a function by its own."""
    if isinstance(value, _PLAIN) or (
        isinstance(value, list | tuple) and all(isinstance(v, _PLAIN) for v in value)
    ):
        return str(value)
    return str(getattr(value, "__name__", type(value).__name__)).strip("<>")
