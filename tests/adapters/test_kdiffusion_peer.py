"""The numbers of k-diffusion's functions, where it can be imported, in float64."""

from __future__ import annotations

import pytest
import torch

import probflow as pf
from probflow.adapters.kdiffusion import STOCK

theirs = pytest.importorskip("k_diffusion.sampling")

pytestmark = pytest.mark.peers

DOUBLE = torch.float64
SIGMAS = torch.cat([torch.logspace(1.3, -1.3, 10, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)])
NORMALS = torch.randn(25, 5, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
X = 20.0 * NORMALS[-1]
CHURN = {"s_churn": 5.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.01}


def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    scaled = x / (1.0 + sigma[:, None] ** 2)
    return 0.9 * torch.tanh(x / (1.0 + sigma[:, None]) + 0.2) + 0.1 * scaled


def by_level(sigma: torch.Tensor, after: torch.Tensor | None = None) -> torch.Tensor:
    """Normals by the level at which a step starts."""
    return NORMALS[int((SIGMAS - sigma).abs().argmin())]


@pytest.mark.parametrize("end", [None, -1], ids=["to-zero", "above-zero"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("euler", {}),
        ("euler", CHURN),
        ("heun", {}),
        ("heun", CHURN),
        ("dpm_2", {}),
        ("dpm_2", CHURN),
        *(("lms", {"order": order}) for order in (1, 2, 3, 4)),
        *(
            (name, options)
            for name in ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_3m_sde")
            for options in ({}, {"eta": 0.5, "s_noise": 1.1}, {"eta": 0.0})
        ),
        ("dpmpp_2m", {}),
        *(
            ("dpmpp_2m_sde", {"solver_type": kind, **options})
            for kind in ("midpoint", "heun")
            for options in ({}, {"eta": 0.5, "s_noise": 1.1})
        ),
        *(("dpmpp_sde", o) for o in ({}, {"eta": 0.5}, {"s_noise": 1.2}, {"r": 0.3}, {"eta": 0.0})),
    ],
)
def test_numbers_of_its_functions(
    name: str, options: dict, end: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sigmas = SIGMAS[:end]
    given = {}
    noise = by_level
    if name in ("euler", "heun", "dpm_2"):  # noise by torch.randn_like, in every step
        drawn = iter(NORMALS)
        monkeypatch.setattr(torch, "randn_like", lambda x: next(drawn))
    elif name == "dpmpp_sde":  # increments of one path
        noise = pf.BrownianNoiseSampler(
            X, float(sigmas[sigmas > 0].min()), float(sigmas[0]), seed=1
        )
    if "ancestral" in name or "sde" in name:
        given["noise_sampler"] = noise
    function = f"sample_{name}"
    expected = getattr(theirs, function)(denoise, X, sigmas, disable=True, **given, **options)
    ours = pf.kdiffusion.sample(function, **options)
    result = ours(denoise, X, sigmas, disable=True, noise_sampler=noise)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    assert function in STOCK


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "euler_ancestral", "dpm_2_ancestral"])
def test_numbers_of_its_functions_from_the_global_generator(name: str) -> None:
    options = {} if "ancestral" in name else CHURN
    torch.manual_seed(3)
    expected = getattr(theirs, f"sample_{name}")(denoise, X, SIGMAS, disable=True, **options)
    torch.manual_seed(3)
    result = pf.kdiffusion.sample(f"sample_{name}", **options)(denoise, X, SIGMAS, disable=True)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"eta": 1.0}, {"eta": 0.5, "s_noise": 1.1}], ids=["ode", "eta-1", "eta-0.5"]
)
@pytest.mark.parametrize("n", range(1, 13))
def test_numbers_of_dpm_fast(n: int, options: dict) -> None:
    def noise(sigma: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return NORMALS[int(4 * (3 - float(sigma.log())) + 0.5)]  # the same for the same level

    torch.set_default_dtype(DOUBLE)  # its times are made in the default one
    given = {"disable": True, "noise_sampler": noise, **options}
    try:
        expected = theirs.sample_dpm_fast(denoise, X, 0.05, 20.0, n, **given)
    finally:
        torch.set_default_dtype(torch.float32)
    ours = pf.kdiffusion.sample("sample_dpm_fast")(denoise, X, 0.05, 20.0, n, **given)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
