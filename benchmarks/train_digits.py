"""A small eps network for the digits, trained on the CPU in about five minutes.

    python benchmarks/train_digits.py --out digits.pt2
    probflow sample --checkpoint digits.pt2 --shape 64 --solver unipc-3 --steps 10
    probflow rates docs/studies/digits-learned.toml

The checkpoint is a `torch.export` file of f(x, t), with x of shape (batch, 64) and t of shape
(batch,) the time of `VP.linear()`. The seed and the number of threads fix every bit of it on one
machine.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import probflow as pf
from probflow.studies.config import digits

PROCESS = pf.VP.linear()
TRAINING = 1437  # of the 1797 digits; the others are held out


class Block(nn.Module):
    """Residual block: the noise level shifts and scales the normalised features."""

    def __init__(self, width: int, features: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.level = nn.Linear(features, 2 * width)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        """``h`` (batch, width) plus its update at the features ``level`` (batch, features)."""
        shift, scale = self.level(level).chunk(2, dim=1)
        update = nn.functional.silu(self.inner(self.norm(h) * (1 + scale) + shift))
        return h + self.outer(self.dropout(update))


class Network(nn.Module):
    r"""eps prediction f(x, t): exact for a normal law, with residual blocks for the rest.

    For independent normal pixels of means m and variances v the best prediction is
    :math:`\sigma (x - \alpha m)/s^2`, :math:`s^2 = \alpha^2 v + \sigma^2`, and its error has the
    standard deviation :math:`\alpha \sqrt v/s`. The blocks predict the rest in that unit
    (preconditioning as in Karras et al. 2022, arXiv 2206.00364, for each pixel). Pixels that are
    the same in all digits are exact. All functions are smooth, so solvers keep their orders.

    Parameters
    ----------
    mean, variance
        (64,), of the training data.
    width, blocks
        Size of the hidden layers and their number.
    frequencies
        Number of Fourier frequencies of the log-SNR, 0.5, 1, 1.5, ... over its half range.
    """

    def __init__(
        self,
        mean: Tensor,
        variance: Tensor,
        *,
        width: int = 256,
        blocks: int = 4,
        frequencies: int = 8,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)
        self.register_buffer("frequencies", 0.5 * math.pi * torch.arange(1.0, frequencies + 1))
        self.first = nn.Linear(len(mean), width)
        self.blocks = nn.ModuleList(Block(width, 2 * frequencies, dropout) for _ in range(blocks))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, len(mean))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predicted noise (batch, 64) at states ``x`` (batch, 64) and times ``t`` (batch,)."""
        B = (0.1 * t + 9.95 * t * t)[:, None]  # -ln ab of VP.linear()
        alpha, sigma = torch.exp(-0.5 * B), torch.sqrt(-torch.expm1(-B))
        angle = 0.2 * torch.log(alpha / sigma) * self.frequencies  # log-SNR from -5.0 to 4.6
        level = torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)
        s = torch.sqrt(alpha * alpha * self.variance + sigma * sigma)
        centred = (x - alpha * self.mean) / s
        h = self.first(centred)
        for block in self.blocks:
            h = block(h, level)
        return sigma / s * centred + alpha * torch.sqrt(self.variance) / s * self.last(self.norm(h))


def noised(data: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """States, times and noises for ``data``, with log-SNR uniform on the sampling interval."""
    ends = [float(PROCESS.lambda_(t)) for t in (PROCESS.start, PROCESS.end)]
    u = torch.rand(len(data), generator=generator, dtype=torch.float64)
    t = PROCESS.t(ends[0] + u * (ends[1] - ends[0]))
    eps = torch.randn(data.shape, generator=generator)
    x = PROCESS.alpha(t)[:, None] * data + PROCESS.sigma(t)[:, None] * eps
    return x.float(), t.float(), eps


def split(seed: int) -> tuple[Tensor, Tensor]:
    """The digits, (N, 64) float32, in training and held-out ones."""
    data = digits().data.float()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data[order[:TRAINING]], data[order[TRAINING:]]


@torch.no_grad()
def held_out_loss(network: nn.Module, data: Tensor, seed: int, repeats: int = 5) -> float:
    """Mean square error of the predicted noise per coordinate, at the same draws every time."""
    generator = torch.Generator().manual_seed(seed)
    x, t, eps = noised(data.repeat(repeats, 1), generator)
    return float((network(x, t) - eps).square().mean())


def train(
    *,
    steps: int = 10_000,
    batch: int = 256,
    learning_rate: float = 2e-3,
    decay: float = 0.999,
    seed: int = 0,
    report: int = 1000,
    progress: bool = False,
) -> tuple[nn.Module, list[tuple[int, float, float, float]]]:
    """Train a network; return the running mean of its weights, and how the losses fell.

    Adam with a learning rate that falls to 0 as a cosine. Losses are mean squares per coordinate of
    the error in the noise.

    Parameters
    ----------
    steps, batch, learning_rate
        Number of steps, samples a step, and the first learning rate.
    decay
        Of the exponential running mean of the weights (less in the first steps).
    seed
        Of the split, the weights, the batches and the noise.
    report
        Losses are taken every so many steps.
    progress
        Show a progress bar.

    Returns
    -------
    (Module, list)
        The network, and rows (step, training loss since the last row, loss of the running mean on
        the training data, and on held-out data).

    Raises
    ------
    ValueError
        For numbers that are not positive, or a decay outside [0, 1).
    """
    for name, value in {"steps": steps, "batch": batch, "report": report}.items():
        if value < 1:
            raise ValueError(f"{name}: need at least 1, got {value}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate: need a positive number, got {learning_rate}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay: need a number in [0, 1), got {decay}")
    training, held_out = split(seed)
    torch.manual_seed(seed)  # weights and dropout
    generator = torch.Generator().manual_seed(seed)
    network = Network(training.mean(0), training.var(0))
    mean = torch.optim.swa_utils.AveragedModel(
        network,
        multi_avg_fn=None,
        avg_fn=lambda old, new, n: old + (new - old) * max(1 - decay, 1 / (n + 1)),
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    history, losses = [], []
    for step in tqdm(range(1, steps + 1), unit="step", disable=not progress):
        which = torch.randint(len(training), (batch,), generator=generator)
        x, t, eps = noised(training[which], generator)
        loss = (network(x, t) - eps).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        mean.update_parameters(network)
        losses.append(loss.detach())
        if step % report == 0 or step == steps:
            mean.eval()
            on = [
                held_out_loss(mean.module, data, seed)
                for data in (training[: len(held_out)], held_out)
            ]
            history.append((step, float(torch.stack(losses).mean()), *on))
            losses = []
    return mean.module.eval(), history


def check_out(path: Path) -> None:
    """Raise ``ValueError`` unless a checkpoint can be written to ``path``."""
    if path.suffix != ".pt2":
        raise ValueError(f"out: the checkpoint's name must end in .pt2, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"out: there is no folder {path.parent}")


def save(network: nn.Module, path: Path) -> None:
    """Write a network f(x, t) as a `torch.export` file for any batch size."""
    check_out(path)
    batch = torch.export.Dim("batch", min=1)
    example = (torch.zeros(2, 64), torch.ones(2))
    shapes = ({0: batch}, {0: batch})
    torch.export.save(torch.export.export(network, example, dynamic_shapes=shapes), path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and save; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("digits.pt2"), help="checkpoint to write (.pt2)"
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    try:
        check_out(options.out)
        network, history = train(steps=options.steps, seed=options.seed, progress=True)
    except ValueError as problem:
        parser.error(f"--{problem}")
    print("| step | loss | running mean, training data | held out |\n|---:|---:|---:|---:|")
    for step, *losses in history:
        print(f"| {step} | " + " | ".join(f"{loss:.4f}" for loss in losses) + " |")
    save(network, options.out)
    print(f"\n{options.out}: {time.perf_counter() - start:.0f} s, {options.threads} threads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
