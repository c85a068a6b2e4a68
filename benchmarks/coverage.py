"""Coverage of the order estimate: verdicts on error curves of known order.

Run from the repository root::

    python benchmarks/coverage.py --replicates 200 --seed 0 --out coverage.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from probflow.studies.coverage import markdown_table, simulate, summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulation, print the table and write it where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--replicates", type=int, default=200, help="studies per curve and noise")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--out", type=Path, default=None, help="Markdown file to write")
    args = parser.parse_args(argv)
    if args.replicates < 1:
        parser.error(f"--replicates: got {args.replicates}, allowed is 1 or more")
    rows = simulate(replicates=args.replicates, seed=args.seed)
    text = markdown_table(rows) + "\n" + summary(rows)
    print(text, end="")
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
