"""The single HTML page: it needs no network, and no other file, and its drawings do not mix."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from drawn import ORDERS, ROWS

from probflow.report.blocks import (
    Bullets,
    Heading,
    Picture,
    Tabular,
    Text,
    inline_html,
    inline_svg,
    to_html,
    to_text,
)
from probflow.report.document import write_report
from probflow.report.page import save_figure
from probflow.report.rates import rate_plot
from probflow.report.tables import curve_table


class Page(HTMLParser):
    """Tags that are opened and closed, and their attributes."""

    EMPTY = frozenset({"meta", "path", "use", "image", "br", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("report")
    figures = [
        (name, f"Rates <{name}> & more", rate_plot(ROWS, ORDERS, measure="tv", columns=n))
        for n, name in enumerate(("one", "two"), 1)
    ]
    write_report(
        out,
        rows=ROWS,
        orders=ORDERS,
        provenance={"seed": 0},
        figures=figures,
        notes=["A note with `code`."],
        title="A <title>",
    )
    return (out / "report.html").read_text(encoding="utf-8")


def test_it_is_well_formed_and_holds_everything(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert "<title>A &lt;title&gt;</title>" in page
    assert "<code>code</code>" in page
    assert page.count("<svg ") == 2
    assert page.count("<table>") == 1 + 2  # the summary, and two curves
    for text in ("consistent with 2", "2.00 [1.94, 2.07]", "Rates <one> & more", "A <title>"):
        assert text in parsed.words


def test_it_needs_nothing_else(page: str) -> None:
    for tag, name, value in Page(page).attributes:
        if name in ("src", "href", "xlink:href", "data"):
            assert value.startswith("#") or value.startswith("data:"), (tag, name, value)
        assert tag not in ("script", "link", "img", "iframe")
    assert "url(http" not in page
    assert "@import" not in page


def test_names_and_styles_of_drawings_do_not_mix(page: str) -> None:
    attributes = Page(page).attributes
    names = [value for _, name, value in attributes if name == "id"]
    assert len(set(names)) == len(names) > 50
    for _, name, value in attributes:
        if name == "xlink:href":
            assert value[1:] in names
    for name in re.findall(r"url\(#([^)]+)\)", page):
        assert name in names
    rules = re.findall(r'<style type="text/css">([^<{]+)\{', page)
    assert [rule.strip() for rule in rules] == ["#one-drawing *", "#two-drawing *"]


def test_inline_svg_keeps_the_text(tmp_path: Path) -> None:
    [path] = save_figure(rate_plot(ROWS, ORDERS, measure="tv"), tmp_path / "x", ("svg",))
    text = inline_svg(path.read_text(encoding="utf-8"), "a b")
    assert text.startswith('<svg id="a-b-drawing" role="img"')
    assert "metadata" not in text
    assert "consistent with 2" in text


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a < b & c", "a &lt; b &amp; c"),
        (r"KL(q \|\| p) of a\_b", "KL(q || p) of a_b"),
        ("`a_b < c`", "<code>a_b &lt; c</code>"),
        ("*so* **very**", "<em>so</em> <strong>very</strong>"),
        ("see [here](x.md)", 'see <a href="x.md">here</a>'),
        ("[0.94, 1.07] and 2 * 3", "[0.94, 1.07] and 2 * 3"),
    ],
)
def test_inline_html(text: str, html: str) -> None:
    assert inline_html(text) == html


def test_blocks_in_both_languages() -> None:
    table = curve_table(ROWS[:7])
    blocks = [
        Heading(2, "A"),
        Text("B [c](d)"),
        Text("E", files=True),
        Bullets(("f", "g\nh")),
        Tabular(table),
        Tabular(table, titled=False),
        Picture("p", "A | b"),
    ]
    text = to_text(blocks)
    assert text.startswith("## A\n\nB [c](d)\n\nE\n\n- f\n- g\n  h\n\n**ddpm: ")
    assert r"![A \| b](figures/p.png)" in text
    html = to_html(blocks, "t", {"p": "<?xml?><svg width='1'></svg>"})
    assert ">E<" not in html
    assert html.count("<caption>") == 1
