"""What the build of the documentation makes: formulas, gallery pictures, equations of solvers."""

from __future__ import annotations

import html
import logging
import re
import sys
import tempfile
from itertools import pairwise
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
#: What stands in a page in the place of the equations.
EQUATIONS = "<!-- equations of all solvers -->"

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
    """A space between the name of a function and its argument, and primes beside their letters.

    The converter leaves out the one. It writes the others as superscripts, but in a browser's font
    the prime is a raised sign by itself: raised twice, it hangs above.
    """
    ElementTree.register_namespace("", _MATHML)
    root = ElementTree.fromstring(text)
    for element in list(root.iter()):
        if element.tag in (_tag("msup"), _tag("msubsup")):
            _lower_prime(element)
    for row in list(root.iter(_tag("mrow"))):
        pairs = list(enumerate(pairwise(list(row)), 1))
        for i, (element, after) in reversed(pairs):
            operator = after.tag in (_tag("mo"), _tag("mspace"))
            if _base(element).text in _FUNCTIONS and not operator:
                row.insert(i, ElementTree.Element(_tag("mspace"), width="0.1667em"))
    return ElementTree.tostring(root, encoding="unicode")


def _tag(name: str) -> str:
    return f"{{{_MATHML}}}{name}"


def _lower_prime(element: ElementTree.Element) -> None:
    """Move a prime from the exponent of an element to its base."""
    base, exponent = element[0], element[-1]
    alone = exponent.text in _PRIMES
    prime = exponent if alone else next(iter(exponent), None)
    if prime is None or prime.text not in _PRIMES:
        return
    if alone:
        element.remove(exponent)
        element.tag = _tag("mrow" if element.tag == _tag("msup") else "msub")
    else:
        exponent.remove(prime)
    prime.tag = _tag("mo")
    prime.attrib.update(lspace="0", rspace="0")
    element[0] = ElementTree.Element(_tag("mrow"))
    element[0].extend((base, prime))


def _base(element: ElementTree.Element) -> ElementTree.Element:
    """What the indices of an element stand at."""
    scripts = {_tag(tag) for tag in ("msub", "msup", "msubsup", "munder", "munderover")}
    while element.tag in scripts:
        element = element[0]
    return element


def equations() -> str:
    """All solvers with their options and the equations of their step functions, as Markdown."""
    import probflow as pf

    parts = []
    for solver in pf.all_solvers():
        names = " ".join(f"`{name}`" for name in (solver.name, *solver.aliases))
        values = ", ".join(f"`{name}={value!r}`" for name, value in solver.options.items())
        parts.append(f"**{names}**{': ' + values if values else ''}")
        parts.append(f"```text\n{solver.equation}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """The equations of all solvers, where a page asks for them."""
    return markdown.replace(EQUATIONS, equations()) if EQUATIONS in markdown else markdown


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
