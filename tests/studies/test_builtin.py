"""The built-in study's report, at a small size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from probflow.studies.builtin import builtin_curves, digit_images
from probflow.studies.figures import BUILTIN_NOTES, study_report
from probflow.studies.folder import BUILT_IN, load
from probflow.studies.runner import run_curves
from probflow.studies.shown import Images, write_pictures


def test_its_report_has_its_own_figures(tmp_path: Path) -> None:
    curves = [
        replace(
            curve,
            steps=curve.steps[:2],
            settings=replace(curve.settings, samples=2, reference_steps=8),
        )
        for curve in builtin_curves()
    ]
    run_curves(curves, out=tmp_path, title="Small", layout=BUILT_IN)
    write_pictures(tmp_path, [digit_images(count=2, budgets=(2, 5))])
    run = load(tmp_path)
    assert run.complete
    study_report(tmp_path, run.study, run.description, run.pictures)
    figures = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert figures == {"rates-mixture", "rates-digits", "digits-images"}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Small\n")
    assert all(note in text for note in BUILTIN_NOTES)
    assert "Samples (at most 2 NFE, at most 5 NFE) on digits, grid log-snr" in text
    [images] = run.pictures
    assert isinstance(images, Images)
    assert tuple(images.nfe["ddim"]) == (2, 5)
    assert tuple(images.nfe["heun"]) == (2, 4)  # five are no steps of two
