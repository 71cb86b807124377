"""The hooks on one optimizer: what runs inside a training step, and so is written to be quick."""

from __future__ import annotations

import functools
import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from .probe import Followed, Probe, Run, Step
from .timing import Timed


class Owner(Protocol):
    """What an attachment tells the recorder."""

    closed: bool
    #: Whether `begin` was called where every process comes by.
    measured: bool
    #: Steps taken so far by all optimizers together.
    all_steps: int

    def begin(self, *, everywhere: bool = False) -> None:
        """The first step is about to be taken, in every process of a distributed training."""

    def stepped(self, followed: Followed, number: int, closure: bool, started: float) -> None:
        """An optimizer has taken its step of this number; the time since `started` was spent inside its hooks."""

    def cut_short(self, followed: Followed, number: int) -> None:
        """A step was taken, and what was to be done behind it was interrupted."""

    def thrown_away(self, followed: Followed, number: int) -> None:
        """Gradients were zeroed without a step."""

    def zeroed(self, name: str) -> None:
        """An optimizer's gradients were zeroed, after a step or before the first."""

    def changed(self, name: str) -> None:
        """The optimizer holds other parameters than before: have all attachments follow them."""


class Attachment:
    """Hooks of one optimizer, on behalf of the cheap probes; `taken` counts its steps.

    A step at which no probe looks costs two comparisons beside what the recorder itself does: of the step's number with
    the next at which one will, and of the lists of parameters that the optimizer holds.
    """

    def __init__(self, owner: Owner, run: Run, followed: Followed, probes: Sequence[Timed]) -> None:
        self._owner, self._run, self.followed = owner, run, followed
        self._taken = 0
        self._hold(followed.optimizer)
        self._step: Step | None = None
        self._inside = False
        self._stepping: Any = None
        self._stepped = False
        self._spent = 0.0
        #: At the last zero_grad, where a backward pass would show: a gradient, how often it was changed, all steps, and
        #: how often a weight was changed.
        self._mark: tuple[Any, int, int, int]
        self._remember(self._some_gradient())
        cheap = [t for t in probes if not t.probe.expensive]
        self._before_step = [(t, t.probe.before) for t in cheap if _overrides(t, "before")]
        self._on_gradients = [(t, t.probe.on_gradients) for t in cheap if _overrides(t, "on_gradients")]
        self._after_step = [(t, t.probe.after) for t in cheap if _overrides(t, "after")]
        self._looking = {t for t, _ in (*self._before_step, *self._on_gradients, *self._after_step)}
        self._due: float
        #: How far apart the looks are, where that is the same for all probes without a budget.
        self._spacing: int | None
        self._look_next()
        optimizer = followed.optimizer
        self._handles: list[Any] = [
            handle
            for one in (optimizer, *inner_optimizers(optimizer))
            for handle in (one.register_step_pre_hook(self._pre), one.register_step_post_hook(self._post))
        ]
        self._unwrap = self._watch_zero_grad(optimizer)

    def remove(self) -> None:
        """Detach from the optimizer, which is then as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._unwrap()

    @property
    def taken(self) -> int:
        """Steps taken so far."""
        return self._taken

    @taken.setter
    def taken(self, steps: int) -> None:
        self._taken = steps
        self._look_next()

    @property
    def number(self) -> int:
        """The number of the coming step, or of the one that is being taken."""
        return self._taken + 1

    def skipped(self) -> None:
        """The coming step is skipped; a zero_grad that follows says nothing new."""
        self._stepped = True
        if not self._owner.closed:
            self._owner.thrown_away(self.followed, self.number)

    def look_anew(self) -> None:
        """Follow the parameters that the optimizer holds now, where it is other ones than before."""
        optimizer = self.followed.optimizer
        if not self._holds_lists(optimizer, True):
            before = self._held
            self._hold(optimizer)
            if self._held != before:
                self._owner.changed(self.followed.name)

    def _hold(self, optimizer: Any) -> None:
        lists = [group["params"] for group in optimizer.param_groups]
        self._held = [[*map(id, parameters)] for parameters in lists]
        self._lists = [(parameters, tuple(parameters)) for parameters in lists]  # held, so that no id is given anew

    def _holds_lists(self, optimizer: Any, closely: bool) -> bool:
        """Whether the optimizer holds the lists of parameters that it held, as long as they were: all that is asked at
        an idle step; `closely` asks for each parameter, too.
        """
        groups, lists = optimizer.param_groups, self._lists
        if len(groups) != len(lists):
            return False
        for i, (parameters, held) in enumerate(lists):
            now = groups[i]["params"]
            if now is not parameters or len(now) != len(held) or (closely and [*map(id, now)] != self._held[i]):
                return False
        return True

    def _look_next(self) -> None:
        """Find the next step at which a probe may look; 0 where one looks at all of them."""
        spacings = {timed.spacing for timed in self._looking}
        #: Whether what probes copy may be copied together: not where one's own seconds count against its budget.
        self._gathers = None not in spacings
        self._spacing = spacings.pop() if len(spacings) == 1 else None
        if any(timed.spacing == 1 for timed in self._looking):
            self._due = 0
        else:
            self._due = min((timed.next_look(self.number) for timed in self._looking), default=math.inf)

    def _pre(self, optimizer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        owner = self._owner
        if owner.closed or (
            self._inside and optimizer is not self._stepping
        ):  # the inner one's is a part of the outer's
            return
        started = time.perf_counter()
        self._stepping = optimizer
        if not owner.measured:
            owner.begin(everywhere=True)
        looks = self._taken + 1 >= self._due
        if not self._holds_lists(optimizer, looks):
            self.look_anew()
        self._inside = True
        self._step = self._look_before(optimizer, _has_closure(args, kwargs)) if looks else None
        self._spent = time.perf_counter() - started

    def _look_before(self, optimizer: Any, closure: bool) -> Step:
        scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        step = Step(self.followed, self._taken + 1, scale, found_inf, closure, self._gathers)
        for timed, look in self._before_step:
            timed.show(look, step)
        if not closure:
            for timed, look in self._on_gradients:
                timed.show(look, step)
        try:
            step.copy_gathered()
        except Exception as error:
            for timed in self._looking:
                timed.fail(error)
        return step

    def _post(self, optimizer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        owner = self._owner
        if owner.closed or not self._inside or optimizer is not self._stepping:
            return
        started = time.perf_counter()
        self._inside = False
        step, number = self._step, self._taken + 1
        if step is not None:
            self._step = None  # it holds the gradients
            try:
                if step.closure:
                    for timed, look in self._on_gradients:
                        timed.show(look, step)
                for timed, look in self._after_step:
                    timed.show(look, step)
            except BaseException:  # Ctrl-C: the step was taken all the same, and a notebook may go on
                self.taken, self._stepped = number, True
                owner.cut_short(self.followed, number)
                raise
        self._taken, self._stepped = number, True
        if step is not None and self._due:
            if self._spacing is None:
                self._look_next()
            else:
                self._due += self._spacing
        owner.stepped(self.followed, number, _has_closure(args, kwargs), started - self._spent)

    def _watch_zero_grad(self, optimizer: Any) -> Callable[[], None]:
        """Notice gradients that are thrown away without a step: torch has no hook for a step that GradScaler skips."""
        original, before = optimizer.zero_grad, optimizer.__dict__.get("zero_grad")
        own = weakref.ref(self)
        plain = getattr(original, "__func__", None) is torch.optim.Optimizer.zero_grad

        @functools.wraps(original)
        def zero_grad(*args: Any, **kwargs: Any) -> Any:
            attachment = own()
            if attachment is None or attachment._inside or attachment._owner.closed:  # inside: a closure's own
                return original(*args, **kwargs)
            if attachment._stepped:
                attachment._stepped = False
                attachment._owner.zeroed(attachment.followed.name)
            else:
                attachment._zeroed_unused()
            found = original(*args, **kwargs)
            # torch's own leaves no gradient behind, unless it is told to: none has to be looked for.
            left = args or kwargs or not plain
            attachment._remember(attachment._some_gradient() if left else None)
            return found

        optimizer.zero_grad = zero_grad

        def unwrap() -> None:
            # Somebody may have wrapped it again meanwhile: then ours stays inside theirs, and does nothing.
            if optimizer.__dict__.get("zero_grad") is not zero_grad:
                return
            if before is None:
                del optimizer.zero_grad
            else:
                optimizer.zero_grad = before

        return unwrap

    def _zeroed_unused(self) -> None:
        """The gradients are about to be zeroed, and no step was taken since the last time: were there any?

        Those that moved the weights, as SAM's first ones do, were not thrown away.
        """
        gradient, version, steps, weights = self._mark
        if self._owner.all_steps == steps and self.followed.parameters[0]._version == weights:
            now = self._some_gradient()
            if now is not None and (now is not gradient or now._version != version):
                self._owner.thrown_away(self.followed, self.number)
                return
        self._owner.zeroed(self.followed.name)

    def _remember(self, gradient: Any) -> None:
        """After a zero_grad that left this gradient: what a backward pass would change."""
        version = -1 if gradient is None else gradient._version
        self._mark = (gradient, version, self._owner.all_steps, self.followed.parameters[0]._version)

    def _some_gradient(self) -> Any:
        return next((p.grad for p in self.followed.parameters if p.grad is not None), None)


def inner_optimizers(optimizer: Any) -> list[torch.optim.Optimizer]:
    """Return the optimizers inside one that steps by them on the same groups: SAM's, which many loops step alone."""
    return [
        one
        for one in vars(optimizer).values()
        if isinstance(one, torch.optim.Optimizer) and one.param_groups is optimizer.param_groups
    ]


def _has_closure(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether `step` was given a closure; its arguments begin with the optimizer itself."""
    return (len(args) > 1 and args[1] is not None) or bool(kwargs and kwargs.get("closure") is not None)


def _overrides(timed: Timed, method: str) -> bool:
    return getattr(type(timed.probe), method) is not getattr(Probe, method)
