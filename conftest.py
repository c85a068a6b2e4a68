"""What doctests cannot import where an optional package is missing."""

from importlib.util import find_spec

NEED_DIFFUSERS = ("diffusers", "noising", "pipelines", "stock_configs")

collect_ignore = (
    []
    if find_spec("diffusers")
    else ["probflow/diffusers.py", *(f"probflow/adapters/{name}.py" for name in NEED_DIFFUSERS)]
)
