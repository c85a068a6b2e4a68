"""The Python blocks of README and documentation run as written, and generated parts are current."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import probflow as pf
from probflow.describe import solver_table
from probflow.tableaus import TABLEAUS

ROOT = Path(__file__).parents[1]
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if "```python\n" in page.read_text(encoding="utf-8")
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    before = set(pf.solver_names())
    yield
    pf.unregister()
    for name in set(pf.solver_names()) - before:
        pf.unregister_solver(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__documentation__"}
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        line = text[: match.start()].count("\n") + 1
        code = compile("\n" * line + match.group(1), str(page), "exec")
        exec(code, namespace)


def _table(page: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.split("<!-- solvers:begin -->")[1].split("<!-- solvers:end -->")[0].strip()


def test_solver_table_is_that_of_the_registry() -> None:
    assert _table("docs/solvers.md") == solver_table(markdown=True)


def test_short_table_has_the_rows_of_the_registry() -> None:
    names = re.findall(r"^\| `([^`,]+)", _table("README.md"), re.MULTILINE)
    assert len(names) >= 10
    assert _table("README.md") == solver_table(markdown=True, names=names)


#: Packages whose names are public.
PUBLIC = (
    "probflow",
    *(f"probflow.{name}" for name in ("integrate", "laws", "ode", "sde", "studies")),
)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        (package, name)
        for package in PUBLIC
        for name in sorted(set(import_module(package).__all__) - {"__version__"})
    ],
)
def test_every_public_name_is_on_the_api_page(package: str, name: str) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    thing = getattr(import_module(package), name)
    if isinstance(thing, ModuleType):  # itself, or the modules that its functions come from
        sources = [thing.__name__]
        if thing.__name__ not in documented:
            parts = [getattr(thing, part) for part in thing.__all__]
            sources = [part.__module__ for part in parts if callable(part)]
            assert sources
        assert set(sources) <= set(documented)
        return
    home = getattr(thing, "__module__", package)
    if {f"{place}.{name}" for place in ("probflow", package, home)} & set(documented):
        assert thing.__doc__
        return
    if not hasattr(thing, "__module__"):  # a constant, with its module
        assert any(
            name in vars(sys.modules[module]) for module in documented if module in sys.modules
        )
        return
    # With the module that it comes from, where that module says it is public, or names nothing.
    assert thing.__doc__
    module = sys.modules[thing.__module__]
    assert module.__name__ in documented
    assert thing.__name__ in getattr(module, "__all__", [thing.__name__])


def test_every_figure_is_shown() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = set(
        re.findall(r"figures/([\w-]+\.\w+)\)", "".join(p.read_text("utf-8") for p in pages))
    )
    assert shown == {path.name for path in (ROOT / "docs" / "figures").iterdir()}


def test_readme_and_site_name_every_page() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert pages - set(re.findall(r"\(docs/(\S+?\.md)[#)]", readme)) == {"index.md", "api.md"}
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert pages - set(re.findall(r"\((\S+?\.md)[#)]", index)) == {"index.md"}
    menu = (ROOT / "docs" / "mkdocs" / "mkdocs.yml").read_text(encoding="utf-8")
    assert pages == set(re.findall(r": (\S+\.md)$", menu, re.MULTILINE))


def test_loop_that_is_written_out_is_that_of_the_tableau() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert f"```text\n{TABLEAUS['heun2'].source}\n```" in text


def test_formulas_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "mkdocs"))
    from hooks import mathml

    assert '<mi>ln</mi><mspace width="0.1667em" /><mn>0.99</mn>' in mathml(r"\ln 0.99")
    assert "<mi>ln</mi><mo" in mathml(r"\ln(x)")  # brackets need no space
    prime = '<mrow><mi>x</mi><mo lspace="0" rspace="0">\N{PRIME}</mo></mrow>'
    assert prime in mathml("x'")
    assert f"<msub>{prime}<mi>t</mi></msub>" in mathml("x'_t")
    assert f"<msup>{prime}" in mathml("x'^2")
