"""Long lists of cases: a part of them in ordinary runs, all in slow ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], ids: Any, every: int = 3) -> list[Any]:
    """The cases as parameters, tuples as several; all but every ``every``-th are slow.

    ``ids`` makes the name of a case.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            id=ids(case),
            marks=pytest.mark.slow if number % every else (),
        )
        for number, case in enumerate(cases)
    ]
