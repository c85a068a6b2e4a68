"""What the build of the documentation makes: formulas as MathML, and the gallery's pictures."""

from __future__ import annotations

import html
import logging
import re
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.plugins.hooks")  # warnings of this name fail a strict build

_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', re.DOTALL
)
_MATHML = "http://www.w3.org/1998/Math/MathML"
_FUNCTIONS = {"arg", "cos", "det", "exp", "inf", "lim", "ln", "log", "max", "min", "sin", "sup"}
_FUNCTIONS |= {"cosh", "sinh", "tan", "tanh"}
_PRIMES = {"\N{PRIME}", "\N{DOUBLE PRIME}", "\N{TRIPLE PRIME}"}
_pictures: tempfile.TemporaryDirectory[str] | None = None  # drawn once, also while serving


def mathml(tex: str, display: str = "inline") -> str:
    """A formula as MathML, which browsers draw without a script.

    Raises
    ------
    ValueError
        For a command that the converter does not know: it would stand there as text.
    """
    result = convert(tex, display=display)
    unknown = re.findall(r"\\[a-zA-Z]+", result)
    if unknown:
        raise ValueError(f"unknown commands {', '.join(sorted(set(unknown)))} in {tex!r}")
    return _typeset(result)


def _typeset(text: str) -> str:
    """A space between the name of a function and its argument, and primes as operators.

    The converter leaves out the one, and writes the others as identifiers, which browsers set too
    high and too far away.
    """
    ElementTree.register_namespace("", _MATHML)
    root = ElementTree.fromstring(text)
    for element in root.iter():
        if element.tag == f"{{{_MATHML}}}mi" and element.text in _PRIMES:
            element.tag = f"{{{_MATHML}}}mo"
            element.attrib.update(lspace="0", rspace="0")
    for row in list(root.iter(f"{{{_MATHML}}}mrow")):
        children = list(row)
        for i, (element, after) in reversed(list(enumerate(zip(children, children[1:])))):
            operator = after.tag in (f"{{{_MATHML}}}mo", f"{{{_MATHML}}}mspace")
            if _base(element).text in _FUNCTIONS and not operator:
                row.insert(i + 1, ElementTree.Element(f"{{{_MATHML}}}mspace", width="0.1667em"))
    return ElementTree.tostring(root, encoding="unicode")


def _base(element: ElementTree.Element) -> ElementTree.Element:
    """What the indices of an element stand at."""
    scripts = {f"{{{_MATHML}}}{tag}" for tag in ("msub", "msup", "msubsup", "munder", "munderover")}
    while element.tag in scripts:
        element = element[0]
    return element


def on_page_content(content: str, *, page: Any, **kwargs: Any) -> str:
    """Formulas of a page, those of docstrings included."""

    def formula(match: re.Match[str]) -> str:
        tex = html.unescape(match[2] if match[2] is not None else match[3]).strip()
        try:
            made = mathml(tex, "inline" if match[2] is not None else "block")
        except Exception as problem:
            log.warning(f"{page.file.src_uri}: formula: {problem}")
            return match[0]
        return f'<{match[1]} class="arithmatex">{made}</{match[1]}>'

    return _FORMULA.sub(formula, content)


def on_files(files: Files, *, config: Any, **kwargs: Any) -> Files:
    """The style of formulas, and the gallery's pictures: in the site, not in the repository."""
    global _pictures
    style = Path(__file__).with_name("formulas.css")
    files.append(File.generated(config, style.name, abs_src_path=str(style)))
    if _pictures is None:
        sys.path.insert(0, str(Path(__file__).parent))
        from gallery import draw

        _pictures = tempfile.TemporaryDirectory()
        draw(Path(_pictures.name))
    for path in sorted(Path(_pictures.name).iterdir()):
        files.append(File.generated(config, f"gallery/{path.name}", abs_src_path=str(path)))
    return files
