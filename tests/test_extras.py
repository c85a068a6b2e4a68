"""Packages that need not be there: each is an extra, and a message names it where it is missing."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

import probflow as pf
from probflow.studies.config import tomllib

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]


def test_the_guide_lists_every_extra() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    table = guide.split("| extra | for |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:]))
    assert sorted(named) == sorted(EXTRAS)


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if re.match(r"probflow\.(adapters\.)?\w+$", name)]:
        if name.rpartition(".")[2] in ("diffusers", "noising", "stock_configs", "pipelines"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(vars(pf), "diffusers", raising=False)  # where it was imported before
    for name in {"diffusers", *(name for name in sys.modules if name.startswith("diffusers."))}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'probflow-solvers\[diffusers\]'"):
        _ = pf.diffusers
    with pytest.raises(ImportError, match=r"pip install 'probflow-solvers\[diffusers\]'"):
        import_module("probflow.diffusers")
    assert "diffusers" in EXTRAS
