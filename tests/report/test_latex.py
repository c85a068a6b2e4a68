from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.mathtext import MathTextParser
from test_tables import ORDER, ROWS

from probflow.report.latex import escape_latex, latex_figure, latex_text, to_latex
from probflow.report.tables import curve_table, summary_table, summary_tables
from probflow.report.venues import VENUES, page_width
from probflow.studies.rows import MEASURES, MEASURES_TEX


def test_latex_is_booktabs_and_escaped() -> None:
    text = to_latex(curve_table(ROWS, [ORDER]), summary_table(ROWS, [ORDER]), note="50 % & more")
    for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{", r"\label{tab:"):
        assert command in text
    assert r"$1.272 \times 10^{-1}$" in text
    assert r"mix\_1d" in text
    assert r"$\mathrm{KL}(q\,\|\,p)$" in text
    assert r"50 \% \& more." in text
    assert r"refused: min F' \textless{} 0 \& not \textbar{} injective" in text
    assert "8--32" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert text.count("{") == text.count("}")
    lines = text.split(r"\begin{tabular}{@{}rrrrrrl@{}}")[1].split(r"\end{tabular}")[0].splitlines()
    rows = [line for line in lines if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {6}
    assert (
        "\n" + r"\par\smallskip order in $T$: 2.00 [1.94, 2.07], 8--32, consistent with 2" in text
    )


def test_a_narrow_table_has_fewer_columns() -> None:
    both = [to_latex(*summary_tables(ROWS, [ORDER]), columns=n, venue="icml") for n in (2, 1)]
    [wide], [narrow] = (re.findall(r"^solver.*", text, re.M) for text in both)
    assert wide == r"solver & claim & order [95 \%] & finest EOCs & window & verdict \\"
    assert narrow == r"solver & claim & order [95 \%] & verdict \\"
    # What no column says any more, the caption does.
    assert ["Fit window $T$ = 8--32." in text for text in both] == [False, True]


def test_floats_over_two_columns_are_starred() -> None:
    table = curve_table(ROWS, [ORDER])
    for columns, venue, kind in ((2, "icml", "table*"), (1, "icml", "table"), (2, "siam", "table")):
        text = to_latex(table, columns=columns, venue=venue)
        assert text.startswith(rf"\begin{{{kind}}}" + "\n")
    assert latex_figure("a_b", "c").startswith("\\begin{figure}\n")
    assert latex_figure("a", "c", venue="aistats").startswith("\\begin{figure*}\n")


def test_labels_are_short_and_differ() -> None:
    tables = [curve_table(ROWS), *summary_tables(ROWS, [ORDER])]
    labels = re.findall(r"\\label{(.*?)}", to_latex(*tables, *tables, suffix="-column"))
    assert labels == [
        *("tab:mix-1d-kl-heun-column", "tab:mix-1d-kl-column"),
        *("tab:mix-1d-kl-heun-column-2", "tab:mix-1d-kl-column-2"),
    ]
    taken = {"tab:mix-1d-kl"}
    assert r"\label{tab:mix-1d-kl-2}" in to_latex(tables[1], labels=taken)
    assert taken == {"tab:mix-1d-kl", "tab:mix-1d-kl-2"}


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_is_a_formula_for_axes_and_latex(name: str) -> None:
    MathTextParser("path").parse(MEASURES_TEX[name])  # raises for what matplotlib does not know
    caption = latex_text(f"error: {MEASURES[name]} on a_b, grid log-snr, -ln ab 3 to 0.01")
    assert (
        caption
        == f"error: {MEASURES_TEX[name]} on a\\_b, grid log-snr, $-\\ln\\bar\\alpha$ 3 to 0.01"
    )


@pytest.mark.parametrize(
    ("raw", "safe"),
    [
        ("a_b & 5% #1 $x$ {y}", r"a\_b \& 5\% \#1 \$x\$ \{y\}"),
        ("\\x ~ ^", r"\textbackslash{}x \textasciitilde{} \textasciicircum{}"),
        ("two\nlines", "two lines"),
    ],
)
def test_escape_latex(raw: str, safe: str) -> None:
    assert escape_latex(raw) == safe


DOCUMENT = r"""
\documentclass[10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{booktabs}
\setlength{\textwidth}{%sin}
\begin{document}
%s
\end{document}
"""


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.parametrize("venue", VENUES)
@pytest.mark.parametrize("columns", [1, 2])
def test_tables_compile_and_fit_the_page(tmp_path: Path, venue: str, columns: int) -> None:
    """No error, nothing wider than the text, nothing squeezed."""
    from dataclasses import replace

    long = "accelerated-ode-multistep"
    rows = [*ROWS, *(replace(row, solver=long) for row in ROWS)]
    rows = [replace(row, steps=16 * row.steps, nfe=2048) for row in rows]
    orders = [ORDER, replace(ORDER, solver=long, verdict="inconclusive", window=(16, 1024))]
    tables = [curve_table(rows[:3], orders), *summary_tables(rows, orders)]
    text = to_latex(*tables, note="Seed 0", columns=columns, venue=venue)
    width = page_width(columns, venue)
    (tmp_path / "t.tex").write_text(DOCUMENT % (width, text), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "t.log").read_text(encoding="utf-8", errors="replace")
    assert "Overfull" not in log
    assert "Underfull" not in log
