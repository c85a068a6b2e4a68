"""The bibliography: complete over the registry, readable as BibTeX, without repetition."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

import probflow as pf
from probflow.citations import _parse, entries, entries_of
from probflow.cli import main
from probflow.solvers.embedded import PAIRS
from probflow.tableaus import TABLEAUS

METHODS = [*pf.all_solvers(), *PAIRS.values(), *TABLEAUS.values()]
FIELDS = {
    "inproceedings": {"author", "title", "booktitle", "year"},
    "article": {"author", "title", "journal", "year"},
    "book": {"author", "title", "year"},
    "misc": {"author", "title"},
    "techreport": {"author", "title", "institution", "year"},
    "software": {"author", "title", "version"},
}


def keys(bibtex: str) -> list[str]:
    return re.findall(r"^@\w+\{(\w+),$", bibtex, re.MULTILINE)


def _value(text: str, start: int) -> tuple[str, int]:
    """The value in braces that begins at ``start``, and where it ends."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + 1 : position], position + 1
    raise AssertionError(f"braces of {text[start : start + 40]!r} do not close")


def read(bibtex: str) -> dict[str, tuple[str, dict[str, str]]]:
    """A reader of BibTeX by its own rules (balanced braces), not by lines."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for match in re.finditer(r"@(\w+)(?=\{)", bibtex):
        body, _ = _value(bibtex, match.end())
        key, _, rest = body.partition(",")
        assert key not in found
        fields: dict[str, str] = {}
        position = 0
        while (field := re.compile(r"\s*(\w+)\s*=\s*(?=\{)").match(rest, position)) is not None:
            fields[field[1]], position = _value(rest, field.end())
            position += rest[position : position + 1] == ","
        assert not rest[position:].strip()
        found[key] = match[1], fields
    return found


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_has_its_works(method: object) -> None:
    reference = method.reference  # type: ignore[attr-defined]
    works = entries_of(reference)
    assert works
    found = {value for work in works for name, value in work.fields if name == "eprint"}
    assert set(re.findall(r"\d{4}\.\d{5}", reference)) <= found
    # Each part of a reference names a work, but for remarks on the work before.
    for part in reference.split(";"):
        assert entries_of(part) or part.startswith((" on x0", "Dormand, Prince")), part
    assert keys(pf.cite(method)) == [work.key for work in works]  # type: ignore[arg-type]


def test_the_bibliography_is_bibtex() -> None:
    text = "\n\n".join(work.bibtex for work in entries().values())
    assert text.isascii()
    found = read(text)
    assert list(found) == list(entries())  # keys are unique: read() checks it
    for key, (kind, fields) in found.items():
        assert FIELDS[kind] <= set(fields), key
        assert "cited" not in fields
        assert all(value and value == value.strip() for value in fields.values()), key
        assert re.fullmatch(r"[12]\d{3}", fields.get("year", "2000")), key
        assert re.fullmatch(r"\d{4}\.\d{5}", fields.get("eprint", "0000.00000")), key
        assert fields.get("archiveprefix", "arXiv") == "arXiv"
        assert ("eprint" in fields) == ("archiveprefix" in fields)
        for name in fields["author"].split(" and "):
            assert name.startswith("{") or name.count(",") == 1, (key, name)
    numbers = Counter(fields.get("eprint") for _, fields in found.values())
    assert all(count == 1 for number, count in numbers.items() if number)


def test_every_work_is_named_by_a_method() -> None:
    used = {work.key for method in METHODS for work in entries_of(method.reference)}
    used |= set(keys(pf.cite(pf.rejection_sample)))
    assert set(entries()) == used


def test_what_can_be_cited() -> None:
    assert keys(pf.cite()) == ["li2024accelerating", "probflow"]
    assert f"version = {{{pf.__version__}}}" in pf.cite("probflow")
    assert keys(pf.cite("dpm_solver_1")) == keys(pf.cite("ddim")) == ["song2021denoising"]
    both = keys(pf.cite("heun", "midpoint"))
    assert sorted(both) == sorted({"heun1900neue", "hairer1993solving", "runge1895numerische"})
    assert "tsitouras2011runge" in keys(pf.cite("tsit5"))
    assert keys(pf.cite(pf.rejection_sample)) == keys(pf.cite("fors")) == ["chen2026high"]
    assert "lu2022dpmsolver" in keys(pf.cite("dpm-solver-23"))
    solver = pf.get_solver("unipc-3", start="euler")
    plan = solver.plan(pf.VP.linear(), [1.0, 0.5, 0.1])
    assert pf.cite(plan) == pf.cite(solver) == pf.cite(solver.function)
    # A solver that builds on another has the other's works after its own.
    assert keys(pf.cite("sde-exponential-ab2")) == ["song2021score", "hochbruck2010exponential"]


def test_a_study_cites_its_solvers_and_the_instrument() -> None:
    target = pf.Gaussian([0.0], 0.5)
    study = pf.study(target, ["ddim", "edm-heun"], [2, 4], "strong")
    assert keys(pf.cite(study)) == ["song2021denoising", "karras2022elucidating", "probflow"]
    renamed = replace(pf.get_solver("ddim"), name="mine")
    text = pf.cite(pf.study(target, ["heun", renamed], [2, 4], "strong"))
    assert keys(text) == ["heun1900neue", "hairer1993solving", "probflow"]
    assert "% cite: nothing is named 'mine'" in text


def test_what_cannot() -> None:
    with pytest.raises(ValueError, match=r"cite: nothing is named 'dimm'; near names: ddim"):
        pf.cite("dimm")
    with pytest.raises(TypeError, match="solver: need a name"):
        pf.cite(3.0)  # type: ignore[arg-type]
    pf.register_solver("mine", reference="me", prediction="eps", orders={"tv": 1})(_mine)
    try:
        with pytest.raises(ValueError, match="reference of 'mine' names no work"):
            pf.cite("mine")
    finally:
        pf.unregister_solver("mine")


def _mine(step: object) -> object:
    """x' = x."""
    return step.x  # type: ignore[attr-defined]


def test_a_broken_file_is_told() -> None:
    with pytest.raises(ValueError, match=r"cannot read the entry that begins with '@misc\{a,'"):
        list(_parse("@misc{a,\n  title = {T},\n  author = no braces\n}"))


def test_in_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solvers", "ddpm_beta", "--bibtex"]) == 0
    assert keys(capsys.readouterr().out) == ["ho2020denoising"]
    assert main(["solvers", "--bibtex"]) == 0
    assert capsys.readouterr().out.strip() == pf.cite()
    assert main(["solvers", "dppm", "--bibtex"]) == 2
