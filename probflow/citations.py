"""BibTeX of what was used: solvers, pairs, Runge-Kutta methods, plans, studies, probflow itself.

The entries stand in ``data/references.bib``. A method is connected with them by its ``reference``,
the text that the registry shows: an entry belongs to it if the text holds the entry's arXiv number
or one of the phrases in its field ``cited``. A reference that names other solvers ("dpm-solver-3 on
x0") has their entries, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

from probflow._version import __version__
from probflow.plan import Plan
from probflow.rejection import rejection_sample
from probflow.solvers.embedded import EmbeddedPair
from probflow.solvers.registry import Solver, find_pair, get_solver, solver_names
from probflow.studies.runner import Study
from probflow.tableaus import TABLEAUS, Tableau
from probflow.words import near

__all__ = ["FOUNDING", "Entry", "cite", "entries", "entries_of"]

FOUNDING = "li2024accelerating"  #: key of the paper that probflow began with
PROBFLOW = "probflow"  # key of probflow itself


@dataclass(frozen=True)
class Entry:
    """A work in the bibliography.

    Attributes
    ----------
    kind, key
        As in ``@kind{key,``.
    fields
        Field names and values, in order, without the outer braces.
    cited
        Texts in a method's reference that mean this work.
    """

    kind: str
    key: str
    fields: tuple[tuple[str, str], ...]
    cited: tuple[str, ...] = ()

    @property
    def bibtex(self) -> str:
        """The entry as BibTeX."""
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in self.fields)
        return f"@{self.kind}{{{self.key},\n{lines}\n}}"

    def meant_by(self, reference: str) -> bool:
        """Whether a method's reference names this work."""
        marks = [value for name, value in self.fields if name == "eprint"]
        return any(mark in reference for mark in (*marks, *self.cited))


def _parse(text: str) -> Iterator[Entry]:
    """The entries of a file with one field a line."""
    text = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    for block in re.split(r"\n{2,}", text.strip()):
        head, *lines, end = block.splitlines()
        opening = re.fullmatch(r"@(\w+)\{(\w+),", head)
        matches = [re.fullmatch(r"  (\w+) = \{(.*)\},?", line) for line in lines]
        if opening is None or end != "}" or None in matches:
            raise ValueError(f"references.bib: cannot read the entry that begins with {head!r}")
        fields = {match[1]: match[2] for match in matches if match is not None}
        cited = tuple(filter(None, fields.pop("cited", "").split(" | ")))
        yield Entry(opening[1], opening[2], tuple(fields.items()), cited)


@lru_cache(maxsize=1)
def entries() -> dict[str, Entry]:
    """All works, by key; probflow's own has the version that runs."""
    text = (files("probflow") / "data" / "references.bib").read_text(encoding="utf-8")
    found = {entry.key: entry for entry in _parse(text)}
    own = found[PROBFLOW]
    found[PROBFLOW] = replace(own, fields=(*own.fields, ("version", __version__)))
    return found


def entries_of(reference: str) -> list[Entry]:
    """The works that a method's reference names, in the order of the bibliography.

    Those of solvers that it names come after its own.
    """
    found = [entry for entry in entries().values() if entry.meant_by(reference)]
    for word in re.split(r"[\s,;]+", reference):
        if word in solver_names(aliases=True) and get_solver(word).reference != reference:
            found += entries_of(get_solver(word).reference)
    return list(dict.fromkeys(found))


def cite(*things: str | Solver | EmbeddedPair | Tableau | Plan | Study | Callable[..., Any]) -> str:
    """BibTeX of the works behind what was used, without repetition.

    Parameters
    ----------
    *things
        Any number of: a solver (its name, an alias, a :class:`~probflow.Solver` or a registered
        step function), an adaptive pair such as ``"dpm-solver-23"``, a Runge-Kutta method of
        :func:`~probflow.odeint` such as ``"dopri5"``, the function
        :func:`~probflow.rejection_sample` (also ``"fors"``), a :class:`~probflow.plan.Plan`, the
        result of :func:`~probflow.study` (its solvers, and probflow, which measured; one that names
        no work of the bibliography is a comment), or ``"probflow"``. Without any: the founding
        paper and probflow.

    Returns
    -------
    str
        BibTeX entries with an empty line between them. Works before arXiv come without one.

    Raises
    ------
    ValueError
        For an unknown name, or a solver whose reference names no work of the bibliography (one
        registered by a user; give its own citation).
    TypeError
        For anything else.

    Examples
    --------
    >>> print(cite("ddim").splitlines()[0])
    @inproceedings{song2021denoising,
    """
    found: list[Entry | str] = []
    for thing in things:
        found += _works_of_study(thing) if isinstance(thing, Study) else _works(thing)
    if not things:
        found = [entries()[FOUNDING], entries()[PROBFLOW]]
    texts = (work if isinstance(work, str) else work.bibtex for work in dict.fromkeys(found))
    return "\n\n".join(texts)


def _works_of_study(study: Study) -> Iterator[Entry | str]:
    for name in dict.fromkeys(row.solver for row in study.rows):
        try:
            yield from _works(name)
        except ValueError as problem:  # one of the user's own, perhaps no longer registered
            yield f"% {problem}"
    yield entries()[PROBFLOW]


def _works(thing: Any) -> list[Entry]:
    if thing == PROBFLOW:
        return [entries()[PROBFLOW]]
    if isinstance(thing, Plan):
        return _works(thing.solver)
    if thing is rejection_sample or thing in ("fors", "rejection_sample"):
        return entries_of("arXiv 2602.01338")
    method = _method(thing)
    works = entries_of(method.reference)
    if not works:
        raise ValueError(
            f"cite: the reference of {method.name!r} names no work in probflow's bibliography: "
            f"{method.reference!r}"
        )
    return works


def _method(thing: Any) -> Solver | EmbeddedPair | Tableau:
    """The object that has the name and the reference."""
    if isinstance(thing, Tableau):
        return thing
    pair = find_pair(thing)
    if pair is not None:
        return pair
    if isinstance(thing, str):
        name = thing.strip().lower().replace("_", "-")
        if name in solver_names(aliases=True):
            return get_solver(name)
        if name in TABLEAUS:
            return TABLEAUS[name]
        known = (*solver_names(aliases=True), *TABLEAUS, PROBFLOW)
        raise ValueError(f"cite: nothing is named {thing!r}{near(thing, known)}")
    return get_solver(thing)
