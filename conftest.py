"""What doctests cannot import where an optional package is missing."""

from importlib.util import find_spec

collect_ignore = (
    [] if find_spec("diffusers") else ["probflow/diffusers.py", "probflow/adapters/diffusers.py"]
)
