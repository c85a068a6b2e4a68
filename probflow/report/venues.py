"""Widths of text and columns where papers appear, so that figures and tables go in unscaled."""

from __future__ import annotations

from dataclasses import dataclass

from ..words import near

__all__ = ["VENUES", "WIDE", "Venue", "page_width", "spans_columns"]

#: From this width in inches on, panels stand side by side and tables have all of their columns.
WIDE = 5.0


@dataclass(frozen=True)
class Venue:
    """Where a paper is to appear.

    Parameters
    ----------
    text
        Width of the text in inches.
    column
        Width of one of its two columns in inches; ``None`` where there is only one.
    source
        Where the widths stand.
    """

    text: float
    column: float | None
    source: str


#: Widths as the style files of these venues set them.
VENUES: dict[str, Venue] = {
    "neurips": Venue(5.5, None, "neurips_2025.sty: textwidth"),
    "iclr": Venue(5.5, None, "iclr2025_conference.sty: textwidth"),
    "icml": Venue(6.75, 3.25, "icml2025.sty: textwidth, columnsep 0.25 in"),
    "aistats": Venue(6.75, 3.25, "aistats2025.sty: textwidth, columnsep 0.25 in"),
    "jmlr": Venue(6.0, None, "jmlr2e.sty: textwidth"),
    "tmlr": Venue(6.5, None, "tmlr.sty: textwidth"),
    "siam": Venue(5.125, None, "siamart220329.cls: textwidth"),
}

_ANY = Venue(7.0, 3.4, "no venue in particular: fits a page with two columns")


def _venue(name: str | None) -> Venue:
    if name is None:
        return _ANY
    if name.lower() not in VENUES:
        raise ValueError(
            f"venue: got {name!r}{near(name, VENUES)}, allowed are {', '.join(VENUES)}"
        )
    return VENUES[name.lower()]


def page_width(columns: int, venue: str | None = None) -> float:
    """Width in inches of what spans ``columns`` (1 or 2) columns of a page.

    Where a page has a single column, both are the width of the text.

    Parameters
    ----------
    columns
        1 or 2.
    venue
        A key of :data:`VENUES`; none in particular by default.

    Returns
    -------
    float
        The width.

    Raises
    ------
    ValueError
        For another number, or a venue that is not in :data:`VENUES`.

    Examples
    --------
    >>> page_width(1, "icml"), page_width(2, "icml"), page_width(1, "neurips")
    (3.25, 6.75, 5.5)
    """
    if columns not in (1, 2):
        raise ValueError(f"columns must be 1 or 2 (columns of the page), got {columns!r}")
    found = _venue(venue)
    return found.text if columns == 2 or found.column is None else found.column


def spans_columns(columns: int, venue: str | None) -> bool:
    """Whether a float of that width runs over two columns of text: ``table*``, ``figure*``."""
    return venue is not None and columns == 2 and _venue(venue).column is not None
