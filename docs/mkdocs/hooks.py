"""What the build of the documentation makes: formulas as MathML, and the gallery's pictures."""

from __future__ import annotations

import html
import logging
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.plugins.hooks")  # warnings of this name fail a strict build

_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', re.DOTALL
)
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
    return result


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
    """The gallery's pictures: in the site, not in the repository."""
    global _pictures
    if _pictures is None:
        sys.path.insert(0, str(Path(__file__).parent))
        from gallery import draw

        _pictures = tempfile.TemporaryDirectory()
        draw(Path(_pictures.name))
    for path in sorted(Path(_pictures.name).iterdir()):
        files.append(File.generated(config, f"gallery/{path.name}", abs_src_path=str(path)))
    return files
