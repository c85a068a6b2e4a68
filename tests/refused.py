"""Solvers that the exact laws on the line do not reach, and why; their own tests measure them."""

import probflow as pf

#: Three random variables at once: the density would live in a space of three dimensions. Measured
#: in ``tests/solvers/test_stochastic.py``.
THREE_VARIABLES = {
    "er-sde-3",
    "sa-solver",
    "sde-dpm-solver++-3m",
    "sde-exponential-ab3",
    "sde-exponential-rk3",
    "sde-exponential-rk4",
    "seeds-3",
}
#: Their plans depend on random numbers, so that an order is one of a mean over seeds: see
#: ``tests/solvers/test_provable.py``.
RANDOM = {s.name for s in pf.all_solvers() if "seed" in s.options}

REFUSED = THREE_VARIABLES | RANDOM
