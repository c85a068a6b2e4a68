"""First-order rejection sampling: exact where nothing is clipped, and honest about the rest."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest

import probflow as pf
from probflow.studies.builtin import mixture

PROCESS, TARGET = pf.VP.linear(), mixture()
GRID = pf.grids.log_snr(1.0, 0.2, "neg_log_ab")


def starts(count: int, steps: int) -> torch.Tensor:
    t = float(GRID.times(PROCESS, steps)[0])
    generator = torch.Generator().manual_seed(1)
    return TARGET.sample(
        count, float(PROCESS.alpha(t)), float(PROCESS.sigma(t)), generator=generator
    )


def p_value(samples: torch.Tensor) -> float:
    """Kolmogorov-Smirnov against the exact law at the end of the grid."""
    t = float(GRID.times(PROCESS, 1)[-1])
    levels = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))

    def cdf(x: object) -> object:
        column = torch.as_tensor(x, dtype=torch.float64)[:, None]
        return TARGET._log_tails(column, *levels)[0].exp()[:, 0].numpy()

    return float(kstest(samples[:, 0].double().numpy(), cdf).pvalue)


def test_the_law_is_exact_where_nothing_is_clipped() -> None:
    short = pf.rejection_sample(
        TARGET, starts(20_000, 12), 12, process=PROCESS, grid=GRID, bound=1.5, seed=3
    )
    assert short.clipped < 2e-3
    assert p_value(short.samples) > 0.01
    long = pf.rejection_sample(TARGET, starts(20_000, 1), 1, process=PROCESS, grid=GRID, seed=3)
    assert long.clipped > 0.1
    assert p_value(long.samples) < 1e-6  # the bias of clipping is real, and told


def test_counts() -> None:
    result = pf.rejection_sample(
        TARGET, starts(4000, 12), 12, process=PROCESS, grid=GRID, bound=1.0, seed=0
    )
    assert result.nfe.shape == (4000,)
    # A mean of 2 B e^B + 1 evaluations a step; sd of the mean is below 1 %.
    expected = 12 * (2 * math.e + 1)
    assert float(result.nfe.double().mean()) == pytest.approx(expected, rel=0.03)
    assert result.acceptance == pytest.approx(math.exp(-1), rel=0.03)


@pytest.mark.parametrize("prediction", ["eps", "v", "score"])
def test_any_model_shape_and_seed(prediction: str) -> None:
    target = pf.GaussianMixture([0.5, 0.5], [[-1.0] * 4, [1.0] * 4], stds=[0.5, 0.7])
    flat = target.model(PROCESS, prediction)
    model = pf.Model(
        lambda x, t: flat(x.flatten(1), t).reshape(x.shape), PROCESS, prediction=prediction
    )
    x = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(0))
    runs = [pf.rejection_sample(model, x, 10, grid=GRID, seed=s).samples for s in (1, 1, 2)]
    assert runs[0].shape == x.shape
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_wrong_input() -> None:
    x = starts(2, 1)
    with pytest.raises(TypeError, match="x: need a floating-point tensor"):
        pf.rejection_sample(TARGET, [1.0], 4, process=PROCESS)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="x: must be finite"):
            pf.rejection_sample(TARGET, torch.full_like(x, bad), 4, process=PROCESS)
    with pytest.raises(ValueError, match="bound: need a finite number > 0, got 0"):
        pf.rejection_sample(TARGET, x, 4, process=PROCESS, bound=0)
    with pytest.raises(ValueError, match="max_proposals: need a whole number >= 1, got 0"):
        pf.rejection_sample(TARGET, x, 4, process=PROCESS, max_proposals=0)
    with pytest.raises(RuntimeError, match=r"max_proposals: .* not accepted within 1 proposals"):
        pf.rejection_sample(TARGET, starts(200, 4), 4, process=PROCESS, grid=GRID, max_proposals=1)
