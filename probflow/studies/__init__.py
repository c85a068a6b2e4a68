"""Studies: measuring solvers and estimating their orders of convergence."""

from probflow.studies.order import estimate_order, local_orders
from probflow.studies.rows import MEASURES, OrderEstimate, Row
from probflow.studies.runner import Study, study

__all__ = [
    "MEASURES",
    "OrderEstimate",
    "Row",
    "Study",
    "estimate_order",
    "local_orders",
    "study",
]
