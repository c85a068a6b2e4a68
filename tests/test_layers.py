"""The package is built as docs/design.md says: its modules are those named, imports point down."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
LISTS = [
    text
    for text in re.findall(r"^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    if re.match(r"[a-z]+(/|\.py) ", text)
]


NAME = r"\w+(?:\.py|/)"
LINE = re.compile(rf"(?:(\w+/) +(?=\w+\.py))? *({NAME}(?:(?:, | \| ){NAME})*)")


def _names(text: str) -> Iterator[list[list[str]]]:
    """Of each line its modules ``a/b.py`` and packages ``a/``, in groups between bars."""
    package = ""
    for line in text.splitlines():
        match = LINE.match(line)
        assert match, line
        if not line.startswith(" "):
            package = match[1] or ""
        yield [[package + name for name in part.split(", ")] for part in match[2].split(" | ")]


LAYERS = list(_names(LISTS[0]))  # from top to bottom
FILES = {
    str(path.relative_to(ROOT / "probflow")): path
    for path in sorted((ROOT / "probflow").rglob("*.py"))
}


class Import(NamedTuple):
    """A module that another one imports."""

    module: str
    inside: bool  # in a function


def _imports(file: str) -> Iterator[Import]:
    """What a module imports when it runs, imports for annotations left out."""
    own = ["probflow", *Path(file).parts[:-1]]

    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = own[: len(own) - child.level + 1] if child.level else []
                module = ".".join([*above, *([child.module] if child.module else [])])
                for alias in child.names:
                    deeper = f"{module}.{alias.name}"
                    yield Import(deeper if _file(deeper) else module, inside)
            yield from walk(child, inside or isinstance(child, ast.FunctionDef))

    yield from walk(ast.parse(FILES[file].read_text(encoding="utf-8")), False)


def _file(module: str) -> str | None:
    """The file of a module of the package."""
    stem = "/".join(module.split(".")[1:])
    for name in (f"{stem}.py", f"{stem}/__init__.py".lstrip("/")):
        if module.split(".")[0] == "probflow" and name in FILES:
            return name
    return None


def _place(file: str) -> tuple[int, int]:
    """Layer of a file from the top, and its group on that line."""
    for name in (file, file.split("/")[0] + "/"):
        for layer, groups in enumerate(LAYERS):
            for number, group in enumerate(groups):
                if name in group:
                    return layer, number
    raise AssertionError(f"{file} stands in no layer of docs/design.md")


def test_every_module_is_named_and_every_name_is_a_module() -> None:
    lines = [groups for text in LISTS for groups in _names(text)]
    named = {name for groups in lines for group in groups for name in group if name[-1] != "/"}
    modules = {file for file in FILES if Path(file).name not in ("__init__.py", "_version.py")}
    assert named == modules


@pytest.mark.parametrize(
    "file", [file for file in FILES if file not in ("__init__.py", "_version.py")]
)
def test_imports_point_down(file: str) -> None:
    layer, group = _place(file)
    for found in _imports(file):
        imported = _file(found.module)
        if imported is None or imported == "_version.py":
            continue
        assert imported != "__init__.py", "the package's own modules import each other by name"
        other, number = _place(imported)
        loads_adapter = (
            found.inside and file.startswith(("ode/", "sde/")) and "adapters/" in imported
        )
        assert other > layer or (other, number) == (layer, group) or loads_adapter, found.module


def test_reports_are_loaded_when_asked_for() -> None:
    """So ``import probflow`` does not wait for matplotlib."""
    drawing = {"studies/figures.py", "studies/samples.py"}  # which the commands load
    for file in FILES:
        loaded = {found.module for found in _imports(file) if not found.inside}
        assert not drawing & set(map(_file, loaded)), file
        if not file.startswith("report/") and file not in drawing:
            drawn = re.compile(r"(probflow\.report|matplotlib)\b")
            assert not list(filter(drawn.match, loaded)), file


def test_who_imports_what() -> None:
    libraries = {"torchdiffeq", "torchsde", "diffusers"}
    for file in FILES:
        modules = {found.module for found in _imports(file)}
        roots = {module.split(".")[0] for module in modules}
        if not file.startswith("adapters/"):
            assert not roots & libraries, file
        if file.startswith(("plan/", "solvers/", "tableaus", "dop853")):
            assert "torch" not in roots, file
        if file.startswith(("laws/", "integrate/")):
            known = {"probflow.solvers", "probflow.solvers.registry", "probflow.solvers.embedded"}
            assert {module for module in modules if "probflow.solvers" in module} <= known, file
