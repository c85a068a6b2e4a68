"""The solver, with its options, that has the numbers of a stock scheduler of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["STOCK", "WITH_NUMBERS", "stock_solver"]

#: In the place of a solver's name: the one with the numbers of the configuration's scheduler.
STOCK = "stock"

Chosen = tuple[str, dict[str, Any]]
Config = Mapping[str, Any]


def stock_solver(name: str, config: Config) -> Chosen:
    """What a stock scheduler does, by its class name and its whole configuration.

    Parameters
    ----------
    name
        Class name, such as ``"UniPCMultistepScheduler"``.
    config
        All of its arguments, defaults included.

    Returns
    -------
    tuple of str and dict
        Name and options of a solver.

    Raises
    ------
    ValueError
        For a scheduler or an option whose numbers no solver has, naming it.
    """
    words = [word for word in _STOCK if name.startswith(word)]
    if not words:
        raise ValueError(
            f"solver: 'stock' knows no solver with the numbers of {name}; allowed are "
            f"{', '.join(_STOCK)}, or the name of a solver"
        )
    return _STOCK[max(words, key=len)](config)


def _always(solver: str, **options: Any) -> Callable[[Config], Chosen]:
    return lambda config: (solver, options)


def _need(config: Config, key: str, *allowed: Any) -> Any:
    """The value of a key, which must be one of those allowed, if the scheduler has it."""
    value = config.get(key, allowed[0])
    if value not in allowed:
        raise ValueError(
            f"{key}: solver 'stock' has the numbers for {', '.join(map(repr, allowed))}, got "
            f"{value!r}; name a solver"
        )
    return value


def _end(config: Config) -> dict[str, Any]:
    """Lowered last steps, as in DPM-Solver's multistep schedulers and in DEIS."""
    _need(config, "euler_at_final", False)
    return {"final": "lower-below-15"} if config.get("lower_order_final", True) else {}


def _ddim(config: Config) -> Chosen:
    _need(config, "clip_sample", False)  # it clips the data, and keeps the noise
    _need(config, "thresholding", False)
    return "ddim", {}


def _sa_solver(config: Config) -> Chosen:
    raise ValueError(
        "tau_func: a function of the timestep, of which solver 'stock' has no numbers; name "
        "'sa-solver' or 'sa-solver-eps' with tau, predictor and corrector"
    )


def _ddpm(config: Config) -> Chosen:
    _need(config, "variance_type", "fixed_small", "fixed_small_log")
    return "ddpm-posterior", {}


def _pndm(config: Config) -> Chosen:
    _need(config, "skip_prk_steps", True)
    return "pndm", {"start": "heun", "weights": "constant"}


def _deis(config: Config) -> Chosen:
    _need(config, "algorithm_type", "deis")
    order = _need(config, "solver_order", 1, 2, 3)
    if order == 1:
        return "ddim", {}
    start = {"start": "euler"} if order == 3 else {}
    return f"exponential-ab{order}", {**start, **_end(config)}


def _dpm_multistep(config: Config) -> Chosen:
    kinds = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")
    kind = _need(config, "algorithm_type", *kinds)
    order = _need(config, "solver_order", *((1, 2) if kind == "sde-dpmsolver" else (1, 2, 3)))
    if order == 1:
        first = {"sde-dpmsolver++": "sde-dpm-solver++-1", "sde-dpmsolver": "seeds-1"}
        return first.get(kind, "ddim"), {}
    solver = f"{kind.replace('dpmsolver', 'dpm-solver')}-{order}m"
    options = {"solver_type": _need(config, "solver_type", "midpoint", "heun"), **_end(config)}
    if order == 3:
        options |= {"factor": 1.0, "start": "euler"}
        if kind == "sde-dpmsolver++":
            options["variant"] = "diffusers"
    return solver, options


def _dpm_singlestep(config: Config) -> Chosen:
    kind = _need(config, "algorithm_type", "dpmsolver++", "dpmsolver", "sde-dpmsolver++")
    return f"{kind.replace('dpmsolver', 'dpm-solver')}-singlestep-stock", {
        "order": _need(config, "solver_order", 2, 1, 3),
        "solver_type": _need(config, "solver_type", "midpoint", "heun"),
        "final": "lower" if config.get("lower_order_final", False) else "keep",
    }


def _unipc(config: Config) -> Chosen:
    _need(config, "solver_p", None)
    if not config.get("predict_x0", True):
        _need(config, "thresholding", False)
    order = _need(config, "solver_order", 2, 1, 3, 4)
    options = {"variant": _need(config, "solver_type", "bh2", "bh1")}
    if config.get("disable_corrector"):
        options["disable_corrector"] = list(config["disable_corrector"])
    if order > 1 and config.get("lower_order_final", True):
        options["final"] = "lower"
    if order > 2:
        options["start"] = "euler"
    return f"unipc-{order}" + ("" if config.get("predict_x0", True) else "-eps"), options


def _flow(config: Config) -> Chosen:
    _need(config, "stochastic_sampling", False)
    return "euler", {}


_STOCK: dict[str, Callable[[Config], Chosen]] = {
    "DDIM": _ddim,
    "DDPM": _ddpm,
    "EulerDiscrete": _always("edm-euler"),
    "EulerAncestralDiscrete": _always("euler-ancestral"),
    "EDMEuler": _always("edm-euler"),
    "HeunDiscrete": _always("edm-heun"),
    "KDPM2Discrete": _always("edm-dpm2"),
    "KDPM2AncestralDiscrete": _always("dpm2-ancestral"),
    "LMSDiscrete": _always("lms-4", start="euler"),
    "PNDM": _pndm,
    "DEISMultistep": _deis,
    "DPMSolverMultistep": _dpm_multistep,
    "EDMDPMSolverMultistep": _dpm_multistep,
    "CosineDPMSolverMultistep": lambda config: _dpm_multistep(
        {**config, "algorithm_type": "sde-dpmsolver++"}
    ),
    "DPMSolverSinglestep": _dpm_singlestep,
    "DPMSolverSDE": _always("dpm-solver++-sde-stock"),
    "SASolver": _sa_solver,
    "UniPCMultistep": _unipc,
    "FlowMatchEulerDiscrete": _flow,
    "FlowMatchHeunDiscrete": _always("heun"),
    "LTXEulerAncestralRF": lambda config: (
        "euler-ancestral-rf",
        {key: config[key] for key in ("eta", "s_noise")},
    ),
}

#: First words of the schedulers that have one.
WITH_NUMBERS = tuple(_STOCK)
