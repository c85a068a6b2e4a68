"""A plan walked one model call at a time, for programs that call the model themselves.

:func:`~probflow.integrate.loop.run_plan` calls the model; here the caller does, and hands over what
it fed to the model and what came back. What it fed counts: if it has changed the state since
:meth:`PlanWalk.advance` returned it (inpainting, callbacks), the change is part of the state.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, add, mul

from probflow.integrate.kernels import combined
from probflow.plan import Combination, Plan, Register

__all__ = ["PlanWalk"]

_X = Register("x")


class PlanWalk:
    """The place in a plan, with the registers that later calls need. May be copied and pickled.

    Parameters
    ----------
    plan
        The plan; its first step has at least one model call.

    Attributes
    ----------
    step, stage : int
        Of the next model call; ``step`` is ``len(plan.steps)`` when the walk is over.
    draws : int
        Number of noises drawn so far.

    Raises
    ------
    ValueError
        For a plan whose first step calls no model, or that takes derivatives of the model.
    """

    def __init__(self, plan: Plan) -> None:
        if not plan.steps[0].stages:
            raise ValueError(f"plan: the first step of {plan.solver} makes no model call")
        if any(stage.tangent for step in plan.steps for stage in step.stages):
            raise ValueError(
                f"plan: {plan.solver} takes derivatives of the model and cannot be served one "
                "call at a time; take pf.sample with a pf.Model of your network (of a pipeline: "
                "pf.diffusers.from_pipeline(pipe)), or a solver such as 'accelerated-sde'"
            )
        self.plan = plan
        self.step = self.stage = self.draws = 0
        self._now: dict[Register, Tensor] = {}
        self._past: list[dict[Register, Tensor]] = []
        self._memory = plan.memory
        self._kept = {
            register._replace(age=0)
            for step in plan.steps
            for combination in step.combinations()
            for register, _ in combination
            if register.age
        }

    def __copy__(self) -> PlanWalk:
        """A walk that goes on from here without changing this one; the tensors are shared."""
        other = object.__new__(PlanWalk)
        other.__dict__.update(self.__dict__)
        other._now = dict(self._now)
        return other

    @property
    def over(self) -> bool:
        """Whether all model calls are made."""
        return self.step == len(self.plan.steps)

    def begin(self, x: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
        """What to feed to the model first, for the state ``x`` at the plan's first time.

        It is ``x`` but for solvers that add noise before they call the model. A caller who has made
        that input otherwise need not call this.

        Parameters
        ----------
        x
            The state, (batch, ...).
        draw
            As that of :meth:`advance`.

        Returns
        -------
        Tensor
            The first input, shape of ``x``.
        """
        self._now[_X] = x
        self._draw(draw)
        return self._sum(self.plan.steps[0].stages[0].input)

    def advance(self, fed: Tensor, output: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
        """What to feed to the model next; after the last call, the final state.

        Parameters
        ----------
        fed
            The model's input at this call, in the dtype to compute in.
        output
            What the model returned, in the same dtype.
        draw
            ``draw(number)`` returns the unit normals of that number, counted over the walk.

        Returns
        -------
        Tensor
            Shape of ``fed``.

        Raises
        ------
        ValueError
            If the walk is over, or ``fed`` has another shape than earlier calls whose tensors the
            plan still needs.
        """
        if self.over:
            raise ValueError("advance: the plan's last model call is made; start a new walk")
        self._check_shape(fed)
        step = self.plan.steps[self.step]
        now, stage = self._now, step.stages[self.stage]
        if self.stage == 0:
            self._draw(draw)
            self._take(stage.input, fed)
        alias = stage.alias
        if alias is not None and alias.age == 0:
            now[alias] = fed
        now[Register("u", self.stage)] = fed
        now[Register("f", self.stage)] = output
        self.stage += 1
        if self.stage < len(step.stages):
            return self._sum(step.stages[self.stage].input)
        return self._finish(draw)

    def _check_shape(self, fed: Tensor) -> None:
        # The state itself is replaced by what is fed.
        held = [tensor for register, tensor in self._now.items() if register != _X]
        held += [tensor for past in self._past for tensor in past.values()]
        for tensor in held:
            if tensor.shape != fed.shape:
                raise ValueError(
                    f"sample: need the shape {tuple(tensor.shape)} of the calls before, which "
                    f"{self.plan.solver} still needs, got {tuple(fed.shape)}; begin anew with "
                    "another batch"
                )

    def _draw(self, draw: Callable[[int], Tensor]) -> None:
        """The noises of the current step, unless they are drawn already."""
        for index in range(len(self.plan.steps[self.step].noises)):
            register = Register("z", index)
            if register not in self._now:
                self._now[register] = draw(self.draws)
                self.draws += 1

    def _take(self, combination: Combination, fed: Tensor) -> None:
        """The state of which ``fed`` is the first stage's input."""
        others = [(register, weight) for register, weight in combination if register != _X]
        of_x = sum(weight for register, weight in combination if register == _X)
        if of_x:
            x = fed if of_x == 1.0 else mul(fed, 1.0 / of_x)
            for register, weight in others:
                x = add(x, self._get(register), alpha=-weight / of_x)
            self._now[_X] = x

    def _finish(self, draw: Callable[[int], Tensor]) -> Tensor:
        """Make the update, and go to the next step that calls the model."""
        while True:
            x = self._sum(self.plan.steps[self.step].update)
            if self._memory:
                kept = {r: tensor for r, tensor in self._now.items() if r in self._kept}
                self._past = [kept, *self._past][: self._memory]
            self._now = {_X: x}
            self.step, self.stage = self.step + 1, 0
            if self.over:
                self._now, self._past = {}, []
                return x
            stages = self.plan.steps[self.step].stages
            if stages and stages[0].alias == _X:
                return x
            self._draw(draw)
            if stages:
                return self._sum(stages[0].input)

    def _get(self, register: Register) -> Tensor:
        if register.age:
            return self._past[register.age - 1][register._replace(age=0)]
        return self._now[register]

    def _sum(self, combination: Combination) -> Tensor:
        return combined((self._get(register), weight) for register, weight in combination)
