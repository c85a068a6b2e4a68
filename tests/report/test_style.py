from __future__ import annotations

import subprocess
import sys

import matplotlib
import pytest
from drawn import ORDERS, ROWS
from matplotlib.lines import Line2D

from probflow.report.rates import rate_plot
from probflow.report.style import OKABE_ITO, figure_params, solver_marks
from probflow.report.venues import page_width


def test_marks_are_stable_and_distinct() -> None:
    names = [f"solver-{i}" for i in range(12)]
    marks = solver_marks(names)
    assert solver_marks(names[:5]) == {name: marks[name] for name in names[:5]}
    assert solver_marks([*names, "solver-3"]) == marks
    assert len({mark.marker for mark in marks.values()}) == 12
    assert {mark.colour for mark in marks.values()} <= set(OKABE_ITO.values())
    many = solver_marks(str(i) for i in range(200))
    assert len(set(many.values())) == 200


def test_parameters_and_widths() -> None:
    params = figure_params()
    assert params["pdf.fonttype"] == 42
    assert params["svg.fonttype"] == "none"
    assert params["svg.hashsalt"] == "probflow"
    assert set(params) <= set(matplotlib.rcParams)
    assert (page_width(1), page_width(2)) == (3.4, 7.0)
    with pytest.raises(ValueError, match="columns must be 1 or 2"):
        page_width(3)


def test_handles_carry_the_marks() -> None:
    fig = rate_plot(ROWS, ORDERS, measure="tv")
    handle = fig.legends[0].legend_handles[1]
    assert isinstance(handle, Line2D)
    mark = solver_marks(["ddpm", "accelerated-ode"])["accelerated-ode"]
    assert (handle.get_color(), handle.get_marker()) == (mark.colour, mark.marker)


def test_no_global_state_changes() -> None:
    before = dict(matplotlib.rcParams)
    rate_plot(ROWS, ORDERS, measure="tv")
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, probflow.report\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "source = __import__('pathlib').Path(probflow.report.__file__).parent\n"
        "assert not any('import torch' in p.read_text() for p in source.glob('*.py'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
