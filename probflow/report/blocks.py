"""The parts of a page, written as Markdown or as HTML.

Texts are Markdown of a few signs: ``code``, ``*emphasis*``, ``**strong**``, ``[text](address)`` and
backslashes before signs that mean themselves.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .tables import Table, escape_markdown, to_markdown

__all__ = ["Block", "Bullets", "Heading", "Picture", "Tabular", "Text", "to_html", "to_text"]


@dataclass(frozen=True)
class Heading:
    """A heading of level 1, 2 or 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; one of links to ``files`` is left out of a page that stands alone."""

    text: str
    files: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Tabular:
    """A table, with its title or without."""

    table: Table
    titled: bool = True


@dataclass(frozen=True)
class Picture:
    """A figure by the name of its files, with a caption in plain text."""

    name: str
    caption: str
    formats: tuple[str, ...] = ("pdf", "svg")


Block = Heading | Text | Bullets | Tabular | Picture


# Markdown ---------------------------------------------------------------------------------------


def to_text(blocks: Sequence[Block]) -> str:
    """The page as Markdown; pictures are files in ``figures/``."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Bullets):
        return "\n".join("- " + "\n  ".join(item.splitlines()) for item in block.items)
    if isinstance(block, Tabular):
        text = to_markdown(block.table)
        return (text if block.titled else text.split("\n\n", 1)[1]).rstrip("\n")
    caption = escape_markdown(block.caption)
    alt = caption.replace("[", "(").replace("]", ")")
    links = ", ".join(f"[{end}](figures/{block.name}.{end})" for end in block.formats)
    return f"![{alt}](figures/{block.name}.png)\n\n*{block.name}.* {caption} ({links})"


# HTML -------------------------------------------------------------------------------------------

# Colours come from the reader's own light or dark scheme; figures keep a sheet of white paper.
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
p, ul, figure { max-width: 62rem; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 0.8rem; }
code { font: 0.92em ui-monospace, monospace; }
figure { margin: 1.5rem 0; }
figure svg { background: white; width: 100%; height: auto; border-radius: 4px; }
figcaption, caption { font-size: 0.88rem; text-align: left; padding: 0.4rem 0; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
caption { font-weight: 600; }
thead, tbody { border-bottom: 1.5px solid; }
thead { border-top: 1.5px solid; }
tbody.last { font-weight: 600; }
th, td { padding: 0.2rem 0.6rem; text-align: left; vertical-align: top; }
th:last-child, td:last-child { min-width: 8rem; }
.r { text-align: right; white-space: nowrap; }
@media print {
  body, p, ul, figure { max-width: none; }
  body { font-size: 10pt; margin: 0; }
  figure, tr { break-inside: avoid; }
  h1, h2, h3 { break-after: avoid; }
  .table { overflow: visible; }
  .whole { break-inside: avoid; }
  table, figcaption { font-size: 8pt; }
}
"""


def to_html(blocks: Sequence[Block], title: str, drawings: Mapping[str, str]) -> str:
    """The page as one HTML file that needs no other and no network.

    Parameters
    ----------
    blocks
        The page.
    title
        Title of the window, plain text.
    drawings
        SVG files by the name of their picture.
    """
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style></head>",
        "<body>",
        *(_element(block, drawings) for block in blocks),
        "</body>",
        "</html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _element(block: Block, drawings: Mapping[str, str]) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{inline_html(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return "" if block.files else f"<p>{inline_html(block.text)}</p>"
    if isinstance(block, Bullets):
        items = "\n".join(f"<li>{inline_html(item)}</li>" for item in block.items)
        return f"<ul>\n{items}\n</ul>"
    if isinstance(block, Tabular):
        return _table(block.table, block.titled)
    label = html.escape(block.name)
    drawing = inline_svg(drawings[block.name], block.name)
    caption = html.escape(block.caption)
    return (
        f'<figure id="{label}">\n{drawing}\n'
        f"<figcaption><em>{label}.</em> {caption}</figcaption>\n</figure>"
    )


def _table(table: Table, titled: bool) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        sides = ['class="r"' if side == "r" else "" for side in table.align]
        inner = (
            f"<{tag} {side}>".replace(" >", ">") + f"{html.escape(cell)}</{tag}>"
            for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{''.join(inner)}</tr>"

    end = len(table.body) - table.last
    lines = [f'<div class="table{" whole" if titled else ""}"><table>']
    lines += [f"<caption>{html.escape(table.title)}</caption>"] if titled else []
    lines += [f"<thead>{row(table.head, 'th')}</thead>", "<tbody>"]
    lines += [row(cells, "td") for cells in table.body[:end]]
    lines.append("</tbody>")
    if table.last:
        lines += ['<tbody class="last">', *(row(c, "td") for c in table.body[end:]), "</tbody>"]
    return "\n".join([*lines, "</table></div>"])


_INLINE = re.compile(
    r"\\(?P<sign>[^A-Za-z0-9\s])|`(?P<code>[^`]+)`|\*\*(?P<strong>[^*]+)\*\*|\*(?P<em>[^*]+)\*"
    r"|\[(?P<text>[^\]]+)\]\((?P<to>[^)\s]+)\)"
)


def inline_html(text: str) -> str:
    r"""HTML of a text of the page.

    Examples
    --------
    >>> inline_html(r"`a < b` and *TV* of a\_b")
    '<code>a &lt; b</code> and <em>TV</em> of a_b'
    """
    parts, end = [], 0
    for match in _INLINE.finditer(text):
        parts.append(html.escape(text[end : match.start()]))
        kind = match.lastgroup
        if kind == "to":
            parts.append(f'<a href="{html.escape(match["to"])}">{html.escape(match["text"])}</a>')
        elif kind == "sign":
            parts.append(html.escape(match["sign"]))
        else:
            parts.append(f"<{kind}>{inline_html(match[kind or 0])}</{kind}>")
        end = match.end()
    return "".join(parts) + html.escape(text[end:])


def inline_svg(text: str, name: str) -> str:
    """An SVG file as an element among others: its names and styles are made its own.

    Parameters
    ----------
    text
        The file, as matplotlib writes it.
    name
        What tells its names from those of other drawings on the page.
    """
    body = text[text.index("<svg") :].strip()
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    own = re.sub(r"[^A-Za-z0-9-]", "-", name)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{own}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{own}-\1)", body)
    body = re.sub(r'(<style type="text/css">)\*', rf"\1#{own}-drawing *", body)
    return body.replace("<svg", f'<svg id="{own}-drawing" role="img"', 1)
