from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from drawn import ORDERS, ROWS
from matplotlib.figure import Figure

from probflow.report.page import save_figure, wrap
from probflow.report.rates import rate_plot


def test_wrap_keeps_lines_and_words() -> None:
    text = wrap("aaaa " * 60 + "\nend", 3.4, 5.0)
    assert text.endswith("\nend")
    assert max(map(len, text.split("\n"))) <= 3.4 * 72 / (0.56 * 5.0)


def test_dense_ticks_lose_labels_not_ticks() -> None:
    rows = [dataclasses.replace(ROWS[0], steps=T, nfe=T) for T in range(100, 140)]
    ax = rate_plot(rows, measure="tv", columns=1).axes[0]
    assert len(ax.get_xticks()) == 40
    labels = [text.get_text() for text in ax.get_xticklabels()]
    assert 3 < sum(map(bool, labels)) < 20


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from drawn import ORDERS, ROWS
from probflow.report import rate_plot, save_figure
save_figure(rate_plot(ROWS, ORDERS, measure="tv", title="t", footer="f"), sys.argv[1])
"""


def test_files_are_the_same_in_another_process(tmp_path: Path) -> None:
    fig = rate_plot(ROWS, ORDERS, measure="tv", title="t", footer="f")
    first = save_figure(fig, tmp_path / "a" / "rates.v1")
    assert [path.name for path in first] == ["rates.v1.pdf", "rates.v1.svg", "rates.v1.png"]
    again = save_figure(fig, tmp_path / "again")
    script = SCRIPT.format(here=str(Path(__file__).parent))
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "other")], check=True)
    other = [tmp_path / f"other.{name}" for name in ("pdf", "svg", "png")]
    for path, second, third in zip(first, again, other, strict=True):
        assert path.read_bytes() == second.read_bytes(), path.suffix
        assert path.read_bytes() == third.read_bytes(), path.suffix


FULL = """
import resource, sys
sys.path.insert(0, {here!r})
from drawn import ORDERS, ROWS
from probflow.report import rate_plot, save_figure
figure = rate_plot(ROWS, ORDERS, measure="tv")
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    save_figure(figure, sys.argv[1])
except OSError as problem:
    print(problem)
"""


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """A full disk is an OSError that names the file, in matplotlib's PDF writer, too."""
    pytest.importorskip("resource")
    script = FULL.format(here=str(Path(__file__).parent))
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True
    )
    assert "File too large: " in run.stdout
    assert str(tmp_path / "a.pdf") in run.stdout
    assert run.stderr == ""


def test_files_hold_text_and_no_dates(tmp_path: Path) -> None:
    fig = rate_plot(ROWS, ORDERS, measure="tv")
    pdf, svg, _ = save_figure(fig, tmp_path / "rates")
    text = svg.read_text(encoding="utf-8")
    assert "consistent with 2" in text
    assert "<dc:date>" not in text
    assert b"CreationDate" not in pdf.read_bytes()
    assert b"/Type3" not in pdf.read_bytes()
    assert re.search(rb"/Subtype /(TrueType|CIDFontType2)", pdf.read_bytes())


def test_saving_refuses_unknown_formats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown figure format 'bmp'"):
        save_figure(Figure(), tmp_path / "x", ("png", "bmp"))
    assert list(tmp_path.iterdir()) == []
