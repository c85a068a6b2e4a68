"""Configurations of diffusers' stock schedulers in the arguments of probflow's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import diffusers

from probflow.adapters.stock_solvers import WITH_NUMBERS, stock_solver

__all__ = ["REFUSED", "arguments_of", "compatibles", "translated", "with_stock_solver"]

# Whose timesteps a stock scheduler makes; the first words of its class name.
_STOCK_LAYOUTS = {
    **dict.fromkeys(("Euler", "Heun", "LMS", "KDPM2", "DPMSolverSDE", "EDM", "Cosine"), "euler"),
    **dict.fromkeys(("FlowMatch", "LTXEuler"), "euler"),
    **dict.fromkeys(("DDIM", "DDPM", "PNDM", "UnCLIP", "CogVideoX", "RePaint"), "ddim"),
    **dict.fromkeys(("DPMSolverMultistep", "DPMSolverSinglestep", "DEIS", "SASolver"), "dpm"),
    "UniPC": "unipc",
    **dict.fromkeys(("LCM", "TCD"), "lcm"),
}
#: Class name of probflow's own.
OWN = "ProbflowScheduler"
_FLOWS = ("FlowMatch", "LTXEuler")
_INVERTS = (
    "it runs from data to noise; take pf.encode(pf.diffusers.from_pipeline(pipe), x, solver, "
    "steps), and the configuration of the scheduler that the pipeline samples with"
)
_CONTINUOUS = "its network is told t in [0, 1] of a continuous process, not a training index; "
#: Why the schedulers of these first words are refused, and what to take.
REFUSED = {
    "DDIMInverse": _INVERTS,
    "DPMSolverMultistepInverse": _INVERTS,
    "IPNDM": f"{_CONTINUOUS}take pf.sample with a pf.Model of the network on a pf.VP, prediction "
    "'v' and time 2 atan(sigma/alpha)/pi",
    "DDPMWuerstchen": f"{_CONTINUOUS}take pf.sample with a pf.Model of the network",
    "ScoreSdeVe": "its network is told sigma of a variance-exploding process; take pf.sample with "
    "a pf.Model of the network on pf.EDM(), whose time is sigma, and prediction 'score'",
}


@cache
def _stock_by_arguments() -> dict[frozenset[str], list[str]]:
    """Names of diffusers' schedulers by the names of their arguments; kin share them."""
    found: dict[frozenset[str], list[str]] = {}
    supported = tuple(_STOCK_LAYOUTS)
    for name in sorted(dir(diffusers.schedulers), key=lambda n: (not n.startswith(supported), n)):
        if name.endswith("Scheduler") and inspect.isclass(stock := getattr(diffusers, name, None)):
            found.setdefault(frozenset(arguments_of(stock)), []).append(name)
    return found


def _classes_of(config: Mapping[str, Any], known: set[str]) -> list[str]:
    """The class of a configuration, or all that it can be of if it does not say; none: no stock's.

    One that was never saved or loaded does not say it.

    A scheduler that was made of another one's configuration keeps what it does not know itself, so
    its own arguments are a part of the keys, and those that it has by default are among them.
    """
    if "_class_name" in config:
        return [str(config["_class_name"])]
    keys = frozenset(key for key in config if not key.startswith("_"))
    stock = _stock_by_arguments()
    if keys in stock:
        return stock[keys]
    if keys <= known or "_use_default_values" not in config:
        return []
    by_default = set(config["_use_default_values"])
    own = {**stock, frozenset(known): [OWN]}
    fitting = [arguments for arguments in own if by_default <= arguments <= keys]
    return own[max(fitting, key=len)] if fitting else []


def compatibles() -> list[str]:
    """Names of diffusers' schedulers whose configurations are translated."""
    words = tuple(_STOCK_LAYOUTS)
    return [
        name
        for name in dir(diffusers.schedulers)
        if name.endswith("Scheduler")
        and name.startswith(words)
        and not name.startswith(tuple(REFUSED))
    ]


def arguments_of(scheduler: type) -> dict[str, Any]:
    """Arguments of a scheduler with their defaults."""
    parameters = list(inspect.signature(scheduler.__init__).parameters.values())[1:]  # type: ignore[misc]
    return {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}


def _complete(
    config: Mapping[str, Any], known: set[str]
) -> tuple[str | None, dict[str, Any], set[str], set[str]]:
    """Class name (none for our own), configuration with defaults, its keys, those by default."""
    config = dict(config)
    name = next(iter(_classes_of(config, known)), None)
    by_default = set(config.pop("_use_default_values", ()))
    if name == OWN or (name is None and set(config) <= known):
        return None, config, set(), by_default
    stock = getattr(diffusers, str(name), None)
    own = {} if stock is None else arguments_of(stock)
    by_default |= set(own) - set(config)
    return str(name), {**own, **config}, set(own), by_default


def with_stock_solver(
    config: Mapping[str, Any], known: set[str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments given, with those that make the numbers of the configuration's scheduler.

    Raises
    ------
    ValueError
        As :func:`~probflow.adapters.stock_solvers.stock_solver`, and for a configuration that is
        of no stock scheduler, or of one of several.
    """
    name, whole, own, _ = _complete(config, known)
    if name is None or not own:
        raise ValueError("solver: 'stock' needs the configuration of a stock scheduler")
    solver, options = stock_solver(name, whole)
    for other in _classes_of(config, known):
        if other.startswith(WITH_NUMBERS) and stock_solver(other, whole) != (solver, options):
            raise ValueError(
                f"solver: 'stock' cannot tell {name} from {other}, since a configuration that was "
                "never saved or loaded does not name its class; name a solver"
            )
    # They clip by default as well, which is no wish of the configuration elsewhere.
    chosen: dict[str, Any] = {
        key: whole[key] for key in ("clip_sample", "thresholding") if key in whole
    }
    if name.startswith("DEIS"):  # ends at the first level of training, which it does not say
        chosen["final_sigmas_type"] = "sigma_min"
    own_options = {**options, **(given.get("solver_options") or {})}
    return {**chosen, **given, "solver": solver, "solver_options": own_options}


def translated(config: Mapping[str, Any], known: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Another scheduler's configuration in the arguments of ``ProbflowScheduler``, ``known``.

    The second dictionary has what only that scheduler knows, for pipelines that ask for it and for
    the way back.

    Raises
    ------
    ValueError
        For a scheduler of :data:`REFUSED`, or one whose noise process is not known.
    """
    name, config, own, by_default = _complete(config, known)
    if name is None:
        return config, {}
    for word, reason in REFUSED.items():
        if name.startswith(word):
            raise ValueError(f"config: {name} cannot be translated: {reason}")
    layouts = [word for word in _STOCK_LAYOUTS if name.startswith(word)]
    if not (layouts or "beta_schedule" in config):
        raise ValueError(
            f"config: the noise process of {name} is not known here; give ProbflowScheduler its "
            "trained_betas, or its prediction_type and shift, yourself (got "
            f"{sorted(key for key in config if not key.startswith('_'))})"
        )
    for clipping in ("clip_sample", "thresholding"):
        if clipping in by_default:
            del config[clipping]
    if layouts:
        config["timestep_layout"] = _STOCK_LAYOUTS[max(layouts, key=len)]
    if name.startswith(_FLOWS):
        config["prediction_type"] = "flow_prediction"
    if name.startswith("RePaint"):
        config["timestep_spacing"] = "leading"
    if name.startswith("Cosine"):
        config["arctan_timesteps"] = True
    if config.get("interpolation_type", "linear") != "linear":
        raise ValueError(
            f"interpolation_type: need 'linear', got {config['interpolation_type']!r}; "
            "'log_linear' is use_exponential_sigmas=True with another number of levels"
        )
    config = {key: value for key, value in config.items() if value is not None}
    hidden = {key: config.pop(key) for key in own if key in config and key not in known}
    return {**config, "_class_name": OWN}, hidden
