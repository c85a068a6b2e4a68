"""Tables for papers: LaTeX with ``booktabs``, at the width of the venue's text or column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..studies.rows import MEASURES, MEASURES_TEX
from .captions import sentences, window_sentence
from .tables import DASH, Table
from .venues import WIDE, page_width, spans_columns

__all__ = ["escape_latex", "latex_figure", "to_latex"]

#: Longest name on one line of a narrow table, in characters.
LONGEST = 18


def to_latex(
    *tables: Table,
    note: str = "",
    columns: int = 2,
    venue: str | None = None,
    labels: set[str] | None = None,
    suffix: str = "",
) -> str:
    r"""LaTeX ``table`` floats for ``\usepackage{booktabs}``; nothing else is needed.

    Parameters
    ----------
    tables
        Tables; each becomes a float with its title as the caption.
    note
        Text that ends every caption: process, seed, versions and the like. The fit windows stand
        before it where no column of the table tells them.
    columns, venue
        How wide the tables may be: see :func:`~probflow.report.venues.page_width`. A table below
        5 in leaves out some columns and breaks long names; one over two columns of a page is a
        ``table*``. Columns without an entry are left out of any.
    labels
        Labels that other tables of the paper have; those of these tables are added. A table's is
        ``tab:`` with its name or title, and a number where there is such a one already.
    suffix
        End of every label.
    """
    narrow = page_width(columns, venue) < WIDE
    kind = "table*" if spans_columns(columns, venue) else "table"
    labels = set() if labels is None else labels
    floats = []
    for table in tables:
        first = label = f"tab:{_slug(table.name or table.title)}{suffix}"
        count = 1
        while label in labels:
            count += 1
            label = f"{first}-{count}"
        labels.add(label)
        floats.append(_float(table, note, narrow, kind, label))
    return "\n".join(floats) or "% No curve has a number.\n"


def latex_figure(name: str, caption: str, *, columns: int = 2, venue: str | None = None) -> str:
    r"""A ``figure`` float for ``\usepackage{graphicx}`` that shows ``NAME.pdf`` unscaled.

    Parameters
    ----------
    name, caption
        Of the file, without a suffix, and plain text.
    columns, venue
        What the figure spans, as for :func:`page_width`.

    Returns
    -------
    str
        The float.

    Raises
    ------
    ValueError
        As :func:`page_width`.
    """
    kind = "figure*" if spans_columns(columns, venue) else "figure"
    lines = [
        rf"\begin{{{kind}}}",
        r"\centering",
        rf"\includegraphics{{{name}.pdf}}",
        rf"\caption{{{latex_text(caption)}}}",
        rf"\label{{fig:{_slug(name)}}}",
        rf"\end{{{kind}}}",
    ]
    return "\n".join(lines) + "\n"


def _float(table: Table, note: str, narrow: bool, kind: str, label: str) -> str:
    left_out = {*table.files, "status", *(table.wide if narrow else ())}
    first_last = len(table.body) - table.last
    kept = [
        i
        for i, head in enumerate(table.head)
        if head not in left_out and any(c[i] not in ("", DASH) for c in table.body[:first_last])
    ]
    reasons = _reasons(table, first_last)
    lines = []
    for cells in table.body[:first_last]:
        texts = [_cell(cells[i], narrow) for i in kept]
        reason = _status(table, cells)
        if reason:
            texts[-1] += rf"\textsuperscript{{{reasons[reason]}}}"
        lines.append(_row(texts))
    foot = []
    for cells in table.body[first_last:]:
        first, *rest = (cell for cell in cells if cell and cell != DASH)
        foot.append(r"\par\smallskip " + latex_text(f"{first}: {', '.join(rest)}"))
    foot += [
        rf"\par\smallskip\raggedright\textsuperscript{{{letter}}} {escape_latex(reason)}"
        for reason, letter in reasons.items()
    ]
    told = any(table.head[i] == "window" for i in kept)
    windows = "" if told else window_sentence(table.orders)
    caption = f"{table.title}. {sentences(windows, note)}".strip()
    return (
        "\n".join(
            [
                rf"\begin{{{kind}}}",
                r"\centering",
                rf"\caption{{{latex_text(caption)}}}",
                rf"\label{{{label}}}",
                r"\smallskip",
                r"\footnotesize",
                rf"\setlength{{\tabcolsep}}{{{3 if narrow else 5}pt}}",
                rf"\begin{{tabular}}{{@{{}}{''.join(table.align[i] for i in kept)}@{{}}}}",
                r"\toprule",
                _row(latex_text(table.head[i]) for i in kept),
                r"\midrule",
                *lines,
                r"\bottomrule",
                r"\end{tabular}",
                *foot,
                rf"\end{{{kind}}}",
            ]
        )
        + "\n"
    )


def _status(table: Table, cells: Sequence[str]) -> str:
    return cells[table.head.index("status")] if "status" in table.head else ""


def _reasons(table: Table, end: int) -> dict[str, str]:
    """Letters of the reasons why cells of ``table`` have no number."""
    found = dict.fromkeys(_status(table, cells) for cells in table.body[:end])
    found.pop("", None)
    return {reason: _letters(i) for i, reason in enumerate(found)}


def _letters(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    text = ""
    while number >= 0:
        number, last = divmod(number, 26)
        text = chr(ord("a") + last) + text
        number -= 1
    return text


def _row(cells: Iterable[str]) -> str:
    line = " & ".join(cells) + r" \\"
    # A bracket after \\ would be read as that command's optional argument.
    return "{}" + line if line.startswith("[") else line


def _cell(text: str, narrow: bool) -> str:
    match = re.fullmatch(r"(-?\d(?:\.\d+)?)e([+-]\d+)", text)
    if match:
        return rf"${match[1]} \times 10^{{{int(match[2])}}}$"
    parts = _broken(text) if narrow and not re.search(r"[0-9.]+ \[", text) else [text]
    if len(parts) == 1 or text in MEASURES.values():
        return latex_text(text)
    inner = r" \\ \quad ".join(map(escape_latex, parts))
    return rf"\begin{{tabular}}[t]{{@{{}}l@{{}}}}{inner}\end{{tabular}}"


def _broken(text: str) -> list[str]:
    """A long name in lines: broken after hyphens, commas and spaces."""
    parts = [""]
    for piece in re.findall(r"[^\s,-]*[\s,-]*", text):
        if parts[-1] and len(parts[-1]) + len(piece.rstrip()) > LONGEST:
            parts.append("")
        parts[-1] += piece
    return [part.strip() for part in parts]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


_LATEX = {char: "\\" + char for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    DASH: "--",
    "\N{MINUS SIGN}": r"\ensuremath{-}",
    "\N{GREEK SMALL LETTER LAMDA}": r"\ensuremath{\lambda}",
}


#: Formulas of plain texts: those of measures, of grids, and the step numbers.
_FORMULAS = {MEASURES[name]: text for name, text in MEASURES_TEX.items()} | {
    "-ln ab": r"$-\ln\bar\alpha$",
    "lambda": r"$\lambda$",
    "T": "$T$",
    "h": "$h$",
}
_FORMULA = re.compile(
    "|".join(rf"(?<![\w-]){re.escape(text)}(?![\w-])" for text in sorted(_FORMULAS, key=len)[::-1])
)


def latex_text(text: str) -> str:
    r"""Text in LaTeX: formulas between dollar signs, everything else escaped.

    Examples
    --------
    >>> latex_text("W2(q, p) on two_moons")
    '$W_2(q, p)$ on two\\_moons'
    """
    text = " ".join(text.split())
    parts, end = [], 0
    for match in _FORMULA.finditer(text):
        parts += [_escaped(text[end : match.start()]), _FORMULAS[match[0]]]
        end = match.end()
    return "".join([*parts, _escaped(text[end:])])


def escape_latex(text: str) -> str:
    r"""Escape LaTeX's special characters.

    Examples
    --------
    >>> escape_latex("noise_inside: 50 %")
    'noise\\_inside: 50 \\%'
    """
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)
