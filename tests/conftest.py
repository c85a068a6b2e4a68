"""Settings shared by all tests."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# One thread for each of the parallel test processes: more would fight over the cores.
torch.set_num_threads(1)

# Machines are shared: no deadline for one example. The same examples in every run.
settings.register_profile("probflow", deadline=None, derandomize=True)
settings.load_profile("probflow")


@pytest.fixture
def nowhere() -> Iterator[None]:
    """A default device that is not the state's: every tensor made there fails when it is read."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)
