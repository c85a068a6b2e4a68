"""probflow in the place of k-diffusion's samplers; see :mod:`probflow.adapters.kdiffusion`."""

from probflow.adapters.kdiffusion import STOCK, sample

__all__ = ["STOCK", "sample"]
