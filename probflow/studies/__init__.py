"""Studies: measuring solvers and estimating their orders of convergence."""

from probflow.studies.check import OrderError, assert_order, check_order
from probflow.studies.order import estimate_order, local_orders
from probflow.studies.rows import MEASURES, OrderEstimate, Row
from probflow.studies.runner import Study, study

__all__ = [
    "MEASURES",
    "OrderError",
    "OrderEstimate",
    "Row",
    "Study",
    "assert_order",
    "check_order",
    "estimate_order",
    "local_orders",
    "study",
]
