"""Printing solvers: the registry as a table, a plan's steps as tableaus in text and in LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from probflow.plan import Plan, Register, Step, X
from probflow.solvers import all_solvers, get_solver
from probflow.solvers.embedded import PAIRS, EmbeddedPair
from probflow.solvers.forms import X0

__all__ = ["pair_text", "solver_table", "tableau", "tableau_latex"]


def solver_table(*, markdown: bool = False, names: Sequence[str] | None = None) -> str:
    """The registry, or the solvers of these names, as a table.

    Its columns are names, NFE per step, declared orders, whether it draws noise, and the reference.

    Parameters
    ----------
    markdown
        As a Markdown table, in the place of aligned text.
    names
        Names or aliases of solvers; by default all registered ones and the embedded pairs, whose
        evaluations are those of a step that is tried.

    Returns
    -------
    str
        A line for each solver below the heading.

    Raises
    ------
    ValueError
        For an unknown name.
    """

    found = all_solvers() if names is None else [get_solver(name) for name in names]
    solvers = [
        ([one.name, *one.aliases], one.nfe, one.orders, one.stochastic, one.reference)
        for one in found
    ]
    if names is None:
        solvers += [
            ([pair.name], pair.nfe, pair.orders, False, f"{pair.reference}; adaptive")
            for pair in PAIRS.values()
        ]
    header = ["solver", "NFE", "TV", "strong", "path", "noise", "reference"]
    rows = []
    for own, nfe, orders, stochastic, reference in solvers:
        every = ", ".join(own)
        claims = (orders.get(measure) for measure in ("tv", "strong", "path-kl"))
        rows.append(
            [
                f"`{every}`" if markdown else every,
                str(nfe),
                *("" if order is None else f"{order:g}" for order in claims),
                "yes" if stochastic else "",
                reference,
            ]
        )
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * 7, *rows]]
        return "\n".join(lines)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(7)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    )


def pair_text(pair: EmbeddedPair) -> str:
    """An embedded pair in some lines: orders, evaluations, reference, and how it is called.

    Parameters
    ----------
    pair
        One of :data:`probflow.solvers.embedded.PAIRS`.

    Returns
    -------
    str
        The lines.
    """
    return "\n".join(
        [
            pair.name,
            "",
            f"order:      {pair.order} in TV, W2 and strong error, with one of order "
            f"{pair.order - 1} inside",
            f"NFE:        {pair.nfe} a step that is tried, {pair.nfe - 1} one that is repeated",
            f"written in: {'x0' if pair.form is X0 else 'eps'}",
            f"reference:  {pair.reference}",
            "",
            "It chooses its steps by rtol and atol: pf.sample(..., rtol=, atol=), pf.odeint,",
            "pf.solve_ode.",
        ]
    )


def tableau(plan: Plan, step: int = 0) -> str:
    """One step of a plan as a text table: a row per stage and one for the update.

    ``f`` is the model's output at the combination in its row, ``j`` its derivative along the
    combination in its row, at the point of the stage above.

    Parameters
    ----------
    plan
        The plan.
    step
        Number of the step; negative numbers count from the end.

    Returns
    -------
    str
        Some lines, the last of which say which intervals the noises belong to.

    Raises
    ------
    ValueError
        If the plan has no such step.

    Examples
    --------
    >>> import probflow as pf
    >>> plan = pf.get_solver("euler").plan(None, [0.0, 0.5, 1.0])
    >>> print(tableau(plan))
    step 0 of 2: t = 0 -> 0.5
          at t  x  f0
    f0 =  0     1
    x' =        1  0.5
    """
    number, chosen = _choose(plan, step)
    header, rows = _cells(chosen)
    table = [["", "at t", *(str(register) for register in header)], *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    title = f"step {number} of {len(plan.steps)}: t = {chosen.start:g} -> {chosen.stop:g}"
    noises = [
        f"z{j}: unit normal of t = {start:g} -> {stop:g}"
        for j, (start, stop) in enumerate(chosen.noises)
    ]
    return "\n".join([title, *lines, *noises])


def tableau_latex(plan: Plan, step: int = 0) -> str:
    """One step of a plan as a LaTeX ``tabular`` (needs booktabs).

    Parameters
    ----------
    plan, step
        As those of :func:`tableau`.

    Returns
    -------
    str
        The ``tabular``.

    Raises
    ------
    ValueError
        If the plan has no such step.
    """
    _, chosen = _choose(plan, step)
    header, rows = _cells(chosen)
    columns = " & ".join(["", "$t$", *(f"${_latex(register)}$" for register in header)])
    body = [
        " & ".join([f"${_latex_name(row[0])}$", *(f"${c}$" if c else "" for c in row[1:])]) + r" \\"
        for row in rows
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(header) + 1)}}}",
            r"\toprule",
            columns + r" \\",
            r"\midrule",
            *body[:-1],
            r"\midrule",
            body[-1],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _choose(plan: Plan, step: int) -> tuple[int, Step]:
    count = len(plan.steps)
    if not -count <= step < count:
        raise ValueError(f"step: the plan has steps 0 .. {count - 1}, got {step}")
    return step % count, plan.steps[step]


def _cells(step: Step) -> tuple[list[Register], list[list[str]]]:
    """Registers in the order x, noises, stages, history; and a row of texts per combination."""
    used = {register for combination in step.combinations() for register, _ in combination}
    order = {"x": 0, "z": 1, "u": 2, "f": 3, "j": 4}
    header = sorted(used | {X}, key=lambda r: (r.age, order[r.kind], r.index))
    lines = []
    for index, stage in enumerate(step.stages):
        lines.append((f"f{index} =", f"{stage.time:.6g}", stage.input))
        if stage.tangent:
            lines.append((f"j{index} =", "", stage.tangent))
    rows = []
    for name, time, combination in [*lines, ("x' =", "", step.update)]:
        weights = dict(combination)
        rows.append([name, time, *(f"{weights[r]:.6g}" if r in weights else "" for r in header)])
    return header, rows


def _latex(register: Register) -> str:
    index = "" if register.kind == "x" else f"_{{{register.index}}}"
    return f"{register.kind}{index}" + (f"^{{(-{register.age})}}" if register.age else "")


def _latex_name(name: str) -> str:
    return "x'" if name.startswith("x'") else f"{name[0]}_{{{name[1:-2]}}}"
