"""The example of a learned score: training, its checkpoint on the command line, its distances."""

from __future__ import annotations

import importlib
import itertools
import json
import pickle
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import probflow as pf
from probflow.cli import main
from probflow.laws.distances import gaussian_w2
from probflow.studies.config import digits, read_study
from probflow.studies.learned import Learned

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
STUDY = """
solvers = ["ddim", "dpm-solver++-2m"]
measures = ["strong", "kl"]
samples = 4
reference_steps = 128
[target]
kind = "checkpoint"
model = "tiny.pt2"
data = "digits"
[grid]
kind = "log-snr"
start = 5.0
end = 0.1
steps = [8, 16, 32, 64]
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def training() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        return importlib.import_module("train_digits")


@pytest.fixture(scope="module")
def frechet(training: ModuleType) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        return importlib.import_module("digits_frechet")


@pytest.fixture(scope="module")
def trained(training: ModuleType):
    return training.train(steps=75, batch=128, report=25)


@pytest.fixture(scope="module")
def checkpoint(training: ModuleType, trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "tiny.pt2"
    training.save(trained[0], path)
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# Training ----------------------------------------------------------------------------------------


def test_loss_falls(training: ModuleType, trained) -> None:
    steps, _, on_training, on_held_out = zip(*trained[1], strict=True)
    assert steps == (25, 50, 75)
    assert list(on_training) == sorted(on_training, reverse=True)
    data, held_out = training.split(0)
    fresh = training.Network(data.mean(0), data.var(0)).eval()  # independent normal pixels
    losses = [training.held_out_loss(fresh, held_out, 0), *on_held_out]
    assert all(after < before for before, after in itertools.pairwise(losses))


def test_seed_fixes_every_bit(training: ModuleType) -> None:
    one, other, another = (training.train(steps=3, seed=seed)[0] for seed in (1, 1, 2))
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(one.first.weight, another.first.weight)


def test_fresh_network_is_exact_for_normal_pixels(training: ModuleType) -> None:
    data = training.split(0)[0].double()
    mean, variance = data.mean(0), data.var(0)
    network = training.Network(mean, variance).double()
    process = training.PROCESS
    exact = pf.Gaussian(mean.numpy(), variance.numpy()).model(process)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (1e-3, 0.1, 0.5, 1.0):
        time = torch.full((5,), t, dtype=torch.float64)
        assert torch.allclose(network(x, time), exact(x, time), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: need at least 1, got 0"),
        ({"batch": 0}, "batch: need at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate: need a positive number, got -1.0"),
        ({"decay": 1.0}, r"decay: need a number in \[0, 1\), got 1.0"),
    ],
)
def test_bad_training_options(training: ModuleType, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training.train(**options)


def test_bad_names_are_refused_before_training(
    training: ModuleType, frechet: ModuleType, capsys, tmp_path: Path
) -> None:
    for script, arguments, message in [
        (training, ["--out", "digits.pt"], "--out: the checkpoint's name must end in .pt2"),
        (training, ["--out", str(tmp_path / "no" / "a.pt2")], "--out: there is no folder"),
        (training, ["--steps", "0"], "steps: need at least 1, got 0"),
        (frechet, ["--checkpoint", "none.pt2"], "--checkpoint: there is no file none.pt2"),
        (frechet, ["--seeds", "1"], "--seeds: need at least 2, got 1"),
    ]:
        with pytest.raises(SystemExit) as stop:
            script.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


# The checkpoint on the command line --------------------------------------------------------------


def test_sample(checkpoint: Path, trained, tmp_path: Path) -> None:
    arguments = ["--solver", "unipc-3", "--steps", 5, "-n", 7, "--no-progress", "--out", tmp_path]
    assert run("sample", "--checkpoint", checkpoint, "--shape", 64, *arguments) == 0
    model = pf.Model(trained[0], pf.VP.linear())
    wanted = pf.sample(model, (7, 64), "unipc-3", 5, grid="log-snr", seed=0)
    assert np.allclose(np.load(tmp_path / "samples.npy"), wanted.numpy(), atol=1e-4)
    assert (tmp_path / "samples.png").is_file()


def test_rates(checkpoint: Path, tmp_path: Path) -> None:
    file = checkpoint.parent / "study.toml"
    file.write_text(STUDY)
    assert run("rates", file, "--jobs", 1, "--no-progress", "--out", tmp_path) == 0
    orders = json.loads((tmp_path / "orders.json").read_text())
    assert {(o["target"], o["solver"], o["measure"]) for o in orders} == {
        ("tiny-learned", solver, measure)
        for solver in ("ddim", "dpm-solver++-2m")
        for measure in ("strong", "kl")
    }
    for order in orders:
        if order["measure"] == "kl":
            assert "a learned model has no law to compare with" in order["reason"]
        else:
            assert order["eoc"][-1] == pytest.approx(order["claim"], abs=0.25)


def test_corrupt_checkpoint(tmp_path: Path, capsys) -> None:
    path = tmp_path / "wrong.pt2"
    path.write_text("nothing")
    assert run("sample", "--checkpoint", path, "--shape", 64, "--out", tmp_path) == 2
    assert "wrong.pt2 is neither TorchScript nor torch.export" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tiny.pt2", "none.pt2", r"\[target\] model: there is no file .*none.pt2"),
        ('"digits"', '"none.npy"', r"\[target\] data: there is no file .*none.npy"),
        ('"digits"', '"digits"\nprediction = "noise"', r"\[target\] prediction: got 'noise'"),
        ('"digits"', '"digits"\ntime_scale = 0', r"\[target\] time_scale: need a finite number"),
        ('data = "digits"', "", r"\[target\] needs the key 'data'"),
    ],
)
def test_bad_study_file(checkpoint: Path, old: str, new: str, message: str) -> None:
    file = checkpoint.parent / "bad.toml"
    file.write_text(STUDY.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_study(file)


def test_learned_target(checkpoint: Path, trained) -> None:
    data = digits()
    learned = Learned(checkpoint, data)
    process = pf.VP.linear()
    generator = torch.Generator().manual_seed(0)
    x = learned.sample(4, 0.6, 0.8, generator=generator)
    assert torch.equal(x, data.sample(4, 0.6, 0.8, generator=generator.manual_seed(0)))
    t = torch.full((4,), 0.4, dtype=torch.float64)
    eps = learned.model(process)(x, t)
    assert eps.dtype == torch.float64
    assert torch.allclose(eps.float(), trained[0](x.float(), t.float()), atol=1e-4)
    copy = pickle.loads(pickle.dumps(learned))  # as workers get it
    assert torch.equal(copy.model(process, "score")(x, t), learned.model(process, "score")(x, t))
    with pytest.raises(ValueError, match="data: need at least 2 coordinates, got 1"):
        Learned(checkpoint, pf.Gaussian(0.0, 1.0))


def test_time_scale_and_prediction(checkpoint: Path) -> None:
    plain, scaled = (Learned(checkpoint, digits(), "x0", scale) for scale in (1.0, 0.5))
    process = pf.VP.linear()
    x = torch.ones(2, 64, dtype=torch.float64)
    assert torch.equal(scaled.model(process, "x0")(x, 0.8), plain.model(process, "x0")(x, 0.4))


# Frechet distance --------------------------------------------------------------------------------


def test_frechet_distance_of_normal_laws(frechet: ModuleType) -> None:
    m, m2 = np.array([0.0, 1.0, -2.0]), np.array([0.5, 1.0, 0.0])
    v, v2 = np.array([1.0, 0.2, 0.0]), np.array([0.3, 2.0, 1.0])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    laws = [
        (torch.from_numpy(rotation @ mean), torch.from_numpy((rotation * var) @ rotation.T))
        for mean, var in ((m, v), (m2, v2))
    ]
    assert frechet.frechet(*laws) == pytest.approx(gaussian_w2(m, v, m2, v2) ** 2, rel=1e-6)
    assert frechet.frechet(laws[0], laws[0]) == pytest.approx(0.0, abs=1e-7)


def test_classifier_and_floor(frechet: ModuleType) -> None:
    features, accuracy = frechet.train_classifier(steps=200)
    assert accuracy > 0.85
    distance = frechet.Distances(features, 400, 3)
    exact = distance.exact()
    noise = distance(lambda seed: torch.randn(400, 64))
    assert 0 < exact.deviation < exact.mean < 0.1 * noise.mean
    assert exact.seconds > 0
    assert exact.minus(exact).distances == [0.0, 0.0, 0.0]


@pytest.mark.slow
def test_whole_script(frechet: ModuleType, checkpoint: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--number", "40", "--seeds", "2", "--samples", "4", "--reference-steps", "64"]
    frechet.main(["--checkpoint", str(checkpoint), "--out", str(tmp_path), *arguments])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"digits-learned.svg", "digits-learned-samples.png"}
    assert "| strong error | 5 | 10 | 20 | 50 | 100 | 200 | 400 |" in capsys.readouterr().out
