"""The Python blocks of README and documentation run as written, and generated parts are current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import probflow as pf
from probflow.cli import solver_table
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


@pytest.mark.parametrize("page", ["README.md", "docs/solvers.md"])
def test_solver_table_is_that_of_the_registry(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    table = text.split("<!-- solvers:begin -->")[1].split("<!-- solvers:end -->")[0].strip()
    assert table == solver_table(markdown=True)


def test_loop_that_is_written_out_is_that_of_the_tableau() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert f"```text\n{TABLEAUS['heun2'].source}\n```" in text
