r"""Gaussian noising processes :math:`x_t = \alpha(t) x_0 + \sigma(t) \epsilon`."""

from probflow.processes.base import Process
from probflow.processes.flow import FlowMatching
from probflow.processes.ve import EDM, VE
from probflow.processes.vp import VP

__all__ = ["EDM", "VE", "VP", "FlowMatching", "Process"]
