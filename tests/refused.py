"""Solvers whose laws on the line take long, or do not exist; their own tests measure them."""

import probflow as pf

#: Three random variables at once or more (``laws/joint.py``). Their orders:
#: ``tests/studies/test_orders.py``; means of functions: ``tests/solvers/test_stochastic.py``.
MANY_VARIABLES = {
    "er-sde-3",
    *("sa-solver", "sa-solver-eps"),
    *("sde-dpm-solver++-3m", "sde-dpm-solver-3m"),
    *("sde-deis-tab2", "sde-deis-tab3", "sde-lms-3", "sde-lms-4"),
    *("sde-exponential-ab3", "sde-exponential-ab3-eps", "sde-exponential-ab3-v"),
    *("sde-exponential-ab4", "sde-exponential-ab4-eps", "sde-exponential-ab4-v"),
    *("sde-exponential-rk3", "sde-exponential-rk4", "seeds-3"),
}
#: Their plans depend on random numbers: an error is a mean over draws, which takes long. See
#: ``tests/solvers/test_provable.py``.
RANDOM = {s.name for s in pf.all_solvers() if "seed" in s.options}

REFUSED = MANY_VARIABLES | RANDOM
