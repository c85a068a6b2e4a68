"""Docstrings are written with reST roles; this turns them into Markdown for the API page."""

from __future__ import annotations

import re
from typing import Any

import griffe

_MATH = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([^`]+)`")
_BLOCK = re.compile(r"^\.\. math::[ \t]*(.*(?:\n(?:[ \t]+\S.*|[ \t]*$))*)", re.MULTILINE)
_TABLE = re.compile(r"(^=+(?: +=+)+$\n(?:.*\n)*?^=+(?: +=+)+$)", re.MULTILINE)


def markdown(text: str) -> str:
    """The text with roles, formulas and simple tables in Markdown."""

    def formula(match: re.Match[str]) -> str:
        body = " ".join(line.strip() for line in match.group(1).splitlines())
        return f"$$ {body.strip()} $$\n\n"

    text = _MATH.sub(r"$\1$", text)
    text = _BLOCK.sub(formula, text)
    text = _ROLE.sub(lambda match: f"`{_short(match.group(1))}`", text)
    return _TABLE.sub(r"```text\n\1\n```", text).replace("::\n\n    ", ":\n\n    ")


def _short(name: str) -> str:
    """The last part of a name, and of a method its class as well."""
    *_, owner, last = ["", *name.split(".")]
    return f"{owner}.{last}" if owner[:1].isupper() else last


class Roles(griffe.Extension):
    """Rewrite every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
