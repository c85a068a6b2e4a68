"""Settings shared by all tests."""

from hypothesis import settings

# Machines are shared: no deadline for one example. The same examples in every run.
settings.register_profile("probflow", deadline=None, derandomize=True)
settings.load_profile("probflow")
