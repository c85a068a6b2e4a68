"""Studies: measuring solvers and estimating their orders of convergence."""

from probflow.studies.axes import Scan, scan
from probflow.studies.check import OrderError, assert_order, check_order
from probflow.studies.compare import compare, read_baseline
from probflow.studies.order import estimate_order, local_orders
from probflow.studies.rows import MEASURES, OrderEstimate, Row
from probflow.studies.runner import Study, study

__all__ = [
    "MEASURES",
    "OrderError",
    "OrderEstimate",
    "Row",
    "Scan",
    "Study",
    "assert_order",
    "check_order",
    "compare",
    "estimate_order",
    "local_orders",
    "read_baseline",
    "scan",
    "study",
]
