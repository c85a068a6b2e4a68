"""Captions that say what a figure or table depends on: target, grid, measure, window, versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..studies.rows import OrderEstimate, Row
from .tables import DASH, place_text, window_text

__all__ = ["rate_caption", "sentences", "settings_text", "window_sentence"]

_LIBRARIES = ("probflow", "commit", "torch", "numpy", "scipy")


def rate_caption(
    rows: Sequence[Row], orders: Sequence[OrderEstimate], provenance: Mapping[str, Any]
) -> str:
    """Caption of the rate plot of one target and measure.

    Parameters
    ----------
    rows, orders
        What is shown: one target and one measure.
    provenance
        Seed, samples and versions; what is not known is left out.

    Returns
    -------
    str
        Sentences.
    """
    row = rows[0]
    grids = list(dict.fromkeys(item.grid for item in rows))
    place = place_text(row.measure, row.target, " and ".join(grids))
    parts = [f"error and local order: {place}", window_sentence(orders)]
    if any(item.se > 0 for item in rows):
        samples = provenance.get("samples")
        count = (
            samples.get(f"{row.target}, {row.measure}") if isinstance(samples, Mapping) else None
        )
        parts.append(f"{f'{count} samples; ' if count else ''}bars are 95 % intervals")
    return sentences(*parts, settings_text(provenance))


def sentences(*texts: str) -> str:
    """Texts as sentences, one after the other; empty ones are left out.

    Parameters
    ----------
    texts
        Without a full stop.

    Returns
    -------
    str
        The sentences.

    Examples
    --------
    >>> sentences("strong error", "", "Seed 0")
    'Strong error. Seed 0.'
    """
    return " ".join(f"{text[:1].upper()}{text[1:]}." for text in texts if text)


def window_sentence(orders: Iterable[OrderEstimate]) -> str:
    """The windows of the fits, for instance ``fit window T = 16–512 (ddim), 32–512 (heun)``.

    Parameters
    ----------
    orders
        Those of one figure.

    Returns
    -------
    str
        Without a full stop; ``no fit`` where there is none.
    """
    windows: dict[str, list[str]] = {}
    for order in orders:
        windows.setdefault(window_text(order), []).append(order.solver)
    none = windows.pop(DASH, [])
    parts = []
    if windows:
        texts = [
            window if len(windows) == 1 and not none else f"{window} ({', '.join(names)})"
            for window, names in windows.items()
        ]
        parts.append(f"fit window T = {', '.join(texts)}")
    if none:
        parts.append(f"no fit for {', '.join(none)}" if windows else "no fit")
    return "; ".join(parts)


def settings_text(provenance: Mapping[str, Any]) -> str:
    """Seed, number type, process and versions of a study, as far as they are known.

    Parameters
    ----------
    provenance
        As :func:`probflow.studies.folder.provenance` makes it.

    Returns
    -------
    str
        Without a full stop; empty if nothing is known.

    Examples
    --------
    >>> settings_text({"seed": 0, "probflow": "0.1.0", "torch": "2.13.0"})
    'seed 0; probflow 0.1.0, torch 2.13.0'
    """
    known = {key: value for key, value in provenance.items() if value not in (None, "", {})}
    parts = []
    if "process" in known:
        parts.append(f"process {known['process']}")
    if "seed" in known:
        parts.append(f"seed {known['seed']}")
    if "seeds" in known:
        parts.append(f"random times: errors averaged over {known['seeds']} draws")
    if "dtype" in known:
        device = f" on {known['device']}" if "device" in known else ""
        parts.append(f"{known['dtype']}{device}")
    versions = [f"{name} {known[name]}" for name in _LIBRARIES if name in known]
    parts += [", ".join(versions)] if versions else []
    return "; ".join(parts)
