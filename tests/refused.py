"""Solvers whose law on the line the exact engine does not give yet, and why.

Those of one step, and with a memory of one, leave this list once it does. Their orders are measured
in ``tests/solvers/test_stochastic.py``.
"""

REFUSED = {
    # A noise is part of a stage's input and of the update.
    "dpm-solver++-sde",
    "sde-exponential-rk2",
    "sde-exponential-rk3",
    "sde-exponential-rk4",
    "sde-heun",
    "seeds-2",
    "seeds-3",
    # Noise first, then a step without noise: the kernel of the latter is a point mass.
    "edm-churn",
    # Multistep: the states are no Markov chain.
    "er-sde-2",
    "er-sde-3",
    "sa-solver",
    "sde-dpm-solver++-2m",
    "sde-dpm-solver++-3m",
    "sde-exponential-ab2",
    "sde-exponential-ab3",
}
