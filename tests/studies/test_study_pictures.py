"""Pictures show what cells measure: the same numbers at the end, the same laws."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import probflow as pf
from probflow.studies import pictures
from probflow.studies.config import digits
from probflow.studies.shown import (
    Densities,
    Images,
    Plane,
    Trajectory,
    read_pictures,
    write_pictures,
)

GRID = pf.grids.log_snr(3.0, -math.log(0.99), unit="neg_log_ab")
LINE = pf.GaussianMixture([0.35, 0.65], [-1.2, 0.8], stds=[0.30, 0.45])
PLANE = pf.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], stds=[[0.3, 0.5], [0.4, 0.2]])


@pytest.mark.parametrize("measure", ["tv", "w2", "path-kl"])
def test_the_last_error_on_the_way_is_the_cell(measure: str) -> None:
    names = ["ddpm", "accelerated-sde"]
    seen = pictures.trajectory(LINE, names, 8, measure, grid=GRID)
    cells = pf.study(LINE, names, [8], measure, grid=GRID)
    for row in cells.rows:
        assert seen.errors[row.solver][-1] == pytest.approx(row.error, rel=1e-12)
    assert len(seen.lambdas) == 8
    assert (np.diff(seen.lambdas) > 0).all()


@pytest.mark.parametrize("target", [pf.Gaussian([0.3, -0.2], [[0.5, 0.1], [0.1, 0.3]]), PLANE])
def test_strong_errors_on_the_way(target: pf.Gaussian) -> None:
    """Deterministic solvers against the flow, stochastic ones on the same Brownian path."""
    names = ["ddim", "heun", "accelerated-sde"]
    seen = pictures.trajectory(target, names, 8, grid=GRID, samples=64)
    # A path of reference has 256 steps or more: so both have one of 256 steps.
    cells = pf.study(target, names, [8, 32], "strong", grid=GRID, samples=64)
    for row in (row for row in cells.rows if row.steps == 8):
        assert seen.errors[row.solver][-1] == pytest.approx(row.error, rel=2e-2)
        assert seen.se[row.solver][-1] == pytest.approx(row.se, rel=1e-1)
    assert seen.measure == "strong"


def test_reasons_stand_beside_what_is_missing() -> None:
    seen = pictures.trajectory(LINE, ["ddim", "ddpm"], 4, "path-kl", grid=GRID)
    assert np.isnan(seen.errors["ddim"]).all()
    assert seen.refused["ddim"].startswith("after 1 steps: ddim is deterministic")
    assert list(seen.refused) == ["ddim"]


@pytest.mark.parametrize("measure", ["tvv", "weak"])
def test_a_trajectory_has_measures_of_one_plan(measure: str) -> None:
    with pytest.raises(ValueError, match=f"measure: got '{measure}'.*allowed are tv"):
        pictures.trajectory(LINE, "ddim", 4, measure)


def test_densities_are_laws_with_the_measured_distance() -> None:
    names = ["ddim", "ddpm"]
    shown = pictures.densities(LINE, names, 8, grid=GRID)
    cells = pf.study(LINE, names, [8], "tv", grid=GRID)
    dx = shown.x[1] - shown.x[0]
    assert shown.true.sum() * dx == pytest.approx(1.0, abs=1e-4)
    for row in cells.rows:
        density = shown.densities[row.solver]
        assert density.sum() * dx == pytest.approx(1.0, abs=1e-2)
        distance = 0.5 * np.abs(density - shown.true).sum() * dx
        assert distance == pytest.approx(row.error, rel=2e-2)


def test_samples_in_the_plane_and_images() -> None:
    shown = pictures.plane(PLANE, ["ddim", "ddpm"], 8, grid=GRID)
    area = (shown.x[1] - shown.x[0]) * (shown.y[1] - shown.y[0])
    assert shown.true.sum() * area == pytest.approx(1.0, abs=2e-2)
    mean, _ = PLANE.moments(0.995, 0.1)
    for points in shown.points.values():
        assert points.shape == (pictures.POINTS, 2)
        assert points.mean(axis=0) == pytest.approx(mean, abs=0.2)
    images = pictures.images(digits(), "ddim", 4, grid=GRID)
    assert images.images["ddim"].shape == (pictures.IMAGES, 8, 8)
    assert images.groups == ("4 steps",)


def test_targets_that_do_not_fit() -> None:
    for make, target, message in (
        (pictures.densities, PLANE, "in one dimension; gaussian-mixture-2d has 2"),
        (pictures.plane, LINE, "in two dimensions"),
        (pictures.images, LINE, "images need"),
    ):
        with pytest.raises(ValueError, match=message):
            make(target, "ddim", 4, grid=GRID)


def test_pictures_come_back_from_their_file(tmp_path: Path) -> None:
    made = pictures.record(tmp_path, [LINE, PLANE], ["ddim", "ddpm"], 4, grid=GRID, samples=8)
    made += (pictures.images(digits(), "ddim", 2, grid=GRID),)
    write_pictures(tmp_path, made)
    kinds = [Trajectory, Densities, Trajectory, Plane, Images]
    assert [type(picture) for picture in made] == kinds
    for picture, again in zip(made, read_pictures(tmp_path), strict=True):
        assert type(picture) is type(again)
        for f in fields(picture):
            a, b = getattr(picture, f.name), getattr(again, f.name)
            if isinstance(a, dict):
                assert list(a) == list(b)
                a, b = list(a.values()), list(b.values())
            if isinstance(a, str | tuple):
                assert a == b
            else:
                np.testing.assert_allclose(a, b, rtol=1e-4)
