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
    bars = "bars are 95 % intervals" if any(item.se > 0 for item in rows) else ""
    return sentences(
        f"error and local order: {place}",
        window_sentence(orders),
        bars,
        settings_text(provenance, rows),
    )


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


def settings_text(provenance: Mapping[str, Any], rows: Iterable[Row] = ()) -> str:
    """Process, seed, samples, number type and versions of a study, as far as they are known.

    Parameters
    ----------
    provenance
        As :func:`probflow.studies.folder.provenance` makes it.
    rows
        What is shown: how many samples the sampled ones of them took is said.

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
    samples = known.get("samples")
    parts += [_samples_text(samples, rows)] if isinstance(samples, Mapping) else []
    if "dtype" in known:
        device = f" on {known['device']}" if "device" in known else ""
        parts.append(f"{known['dtype']}{device}")
    versions = [f"{name} {known[name]}" for name in _LIBRARIES if name in known]
    parts += [", ".join(versions)] if versions else []
    return "; ".join(part for part in parts if part)


def _samples_text(samples: Mapping[str, int], rows: Iterable[Row]) -> str:
    """For instance ``96 samples``, or ``samples: 96 (digits, strong), 384 (digits, tv)``."""
    names = dict.fromkeys(f"{row.target}, {row.measure}" for row in rows if row.se > 0)
    counts = {name: samples[name] for name in names if name in samples}
    if len(set(counts.values())) <= 1:
        return "".join(f"{count} samples" for count in set(counts.values()))
    return "samples: " + ", ".join(f"{count} ({name})" for name, count in counts.items())
