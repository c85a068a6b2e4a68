"""Solvers with one wrong weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import probflow as pf
from probflow.plan import Combination, Plan, Register, Step
from probflow.solvers import Solver

VP = pf.VP.linear()
GRID = pf.grids.log_snr(3.0, -math.log(0.99), "neg_log_ab")


@dataclass(frozen=True)
class Place:
    """A weight of the update (``stage`` is None) or of a stage; no register: the stage's time."""

    stage: int | None
    register: Register | None
    tangent: bool = False

    def __str__(self) -> str:
        part = "update" if self.stage is None else f"stage{self.stage}" + "-tangent" * self.tangent
        return f"{part}-{'time' if self.register is None else self.register}"

    def spoil(self, step: Step, factor: float) -> Step:
        if self.stage is None:
            return replace(step, update=self._scaled(step.update, factor))
        if self.stage >= len(step.stages):
            return step  # the first step of a method with memory
        stages = list(step.stages)
        stage = stages[self.stage]
        if self.register is None:
            # Towards the start of the step, so that no time leaves the process.
            time = step.start + (stage.time - step.start) / factor
            stages[self.stage] = replace(stage, time=time)
        elif self.tangent:
            stages[self.stage] = replace(stage, tangent=self._scaled(stage.tangent, factor))
        else:
            stages[self.stage] = replace(stage, input=self._scaled(stage.input, factor))
        return replace(step, stages=tuple(stages))

    def _scaled(self, combination: Combination, factor: float) -> Combination:
        return tuple((r, w * factor if r == self.register else w) for r, w in combination)


def places(solver: Solver) -> list[Place]:
    """All weights and times of a plan's steps, those of a start included."""
    found = []
    for step in solver.plan(VP, GRID.times(VP, 6)).steps:
        for index, stage in enumerate(step.stages):
            found += [Place(index, register) for register, _ in stage.input]
            found += [Place(index, register, True) for register, _ in stage.tangent]
            if stage.time != step.start:
                found.append(Place(index, None))
        found += [Place(None, register) for register, _ in step.update]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Mutant(Solver):
    """A solver whose plans have one weight multiplied by a factor in every step."""

    place: Place | None = None
    factor: float = 1.0

    def plan(
        self,
        process: Any,
        times: Sequence[float],
        prediction: str | None = None,
        *,
        rises: bool = False,
    ) -> Plan:
        plan = super().plan(process, times)  # in the solver's own prediction type
        if self.place is None:
            return plan
        steps = tuple(self.place.spoil(step, self.factor) for step in plan.steps)
        return replace(plan, steps=steps)


def mutant(solver: Solver, place: Place | None, factor: float) -> Mutant:
    own = {f.name: getattr(solver, f.name) for f in fields(Solver)}
    return Mutant(**own, place=place, factor=factor)
