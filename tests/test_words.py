"""Numbers are looked at by one check, which names argument, what was given and what is allowed."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from probflow.words import check_real


@pytest.mark.parametrize(
    "value",
    [1, 0.5, Fraction(1, 2), np.float32(0.5), np.array(0.5), torch.tensor(1), torch.tensor(0.5)],
)
def test_real_numbers_of_every_kind_become_floats(value: Any) -> None:
    found = check_real("r", value, "(0, 1]")
    assert type(found) is float
    assert found == float(value)


@pytest.mark.parametrize(
    ("value", "interval", "message"),
    [
        (0.0, "(0, 1]", "r: need a number in (0, 1], got 0.0"),
        (1.0, "[0, 1)", "r: need a number in [0, 1), got 1.0"),
        (math.nan, "[0, 1]", "r: need a number in [0, 1], got nan"),
        (math.nan, "[-inf, inf]", "r: need a number, got nan"),
        (math.inf, "(-inf, inf)", "r: need a finite number, got inf"),
        (-1, "[0, inf)", "r: need a finite number >= 0, got -1.0"),
        (0, "(0, inf]", "r: need a number > 0, got 0.0"),
    ],
)
def test_numbers_outside_are_refused(value: float, interval: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_real("r", value, interval)
    assert str(refused.value) == message


@pytest.mark.parametrize("end", [0.0, math.inf])
def test_ends_in_square_brackets_are_allowed(end: float) -> None:
    assert check_real("r", end, "[0, inf]") == end


@pytest.mark.parametrize("value", ["1", True, None, 1j, [1.0], np.array([1.0]), torch.tensor(True)])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^r: need a number or none, got "):
        check_real("r", value, kind="a number or none")
