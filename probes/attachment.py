"""The hooks on one optimizer: what runs inside a training step, and so is written to be quick."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from .probe import Followed, Probe, Run, Step
from .timing import Timed


class Owner(Protocol):
    """What an attachment tells the recorder."""

    #: Seconds spent recording so far.
    recording: float
    closed: bool

    def begin(self) -> None:
        """The first step is about to be taken."""

    def stepped(self, step: Step, started: float) -> None:
        """An optimizer has taken a step; the hooks behind it began at `started`."""

    def thrown_away(self, followed: Followed, number: int) -> None:
        """Gradients were zeroed without a step."""

    def zeroed(self, name: str) -> None:
        """An optimizer's gradients were zeroed, after a step or before the first."""

    def changed(self, name: str) -> None:
        """The optimizer holds other parameters than before: have all attachments follow them."""

    @property
    def all_steps(self) -> int:
        """Steps taken so far by all optimizers together."""
        ...


class Attachment:
    """Hooks of one optimizer, on behalf of the cheap probes; `taken` counts its steps.

    Costs 10 microseconds a step without a probe.
    """

    def __init__(self, owner: Owner, run: Run, followed: Followed, probes: Sequence[Timed]) -> None:
        self._owner, self._run, self.followed = owner, run, followed
        self.taken = 0
        self._held = held_by(followed.optimizer)
        self._step = Step(followed, 0)
        self._inside = self._closure = False
        self._stepped = False
        #: Where a backward pass would show: a gradient, how often it was changed, and all steps at the last zero_grad.
        self._mark: tuple[Any, int, int]
        self._remember(0)
        cheap = [t for t in probes if not t.probe.expensive]
        self._before_step = [t for t in cheap if _overrides(t, "before")]
        self._on_gradients = [t for t in cheap if _overrides(t, "on_gradients")]
        self._after_step = [t for t in cheap if _overrides(t, "after")]
        optimizer = followed.optimizer
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._pre),
            optimizer.register_step_post_hook(self._post),
        ]
        self._unwrap = self._watch_zero_grad(optimizer)

    def remove(self) -> None:
        """Detach from the optimizer, which is then as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._unwrap()

    @property
    def number(self) -> int:
        """The number of the coming step, or of the one that is being taken."""
        return self.taken + 1

    def skipped(self) -> None:
        """The coming step is skipped; a zero_grad that follows says nothing new."""
        self._stepped = True
        if not self._owner.closed:
            self._owner.thrown_away(self.followed, self.number)

    def _pre(self, optimizer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        owner = self._owner
        if owner.closed:
            return
        started = time.perf_counter()
        owner.begin()
        held = held_by(optimizer)
        if held != self._held:
            self._held = held
            owner.changed(self.followed.name)
        number = self.taken + 1
        scale = getattr(optimizer, "grad_scale", None)
        # The arguments begin with the optimizer itself.
        self._closure = (len(args) > 1 and args[1] is not None) or kwargs.get("closure") is not None
        found_inf = getattr(optimizer, "found_inf", None)
        self._step = step = Step(self.followed, number, scale, found_inf, self._closure)
        self._inside = True
        for timed in self._before_step:
            if timed.always or timed.due(number):
                timed.before(step)
        if not self._closure:
            for timed in self._on_gradients:
                if timed.always or timed.due(number):
                    timed.on_gradients(step)
        owner.recording += time.perf_counter() - started

    def _post(self, optimizer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        owner = self._owner
        if owner.closed or not self._inside:
            return
        started = time.perf_counter()
        self._inside = False
        step, number = self._step, self.taken + 1
        if self._closure:
            for timed in self._on_gradients:
                if timed.always or timed.due(number):
                    timed.on_gradients(step)
        for timed in self._after_step:
            if timed.always or timed.due(number):
                timed.after(step)
        self.taken = number
        self._stepped = True
        owner.stepped(step, started)

    def _watch_zero_grad(self, optimizer: Any) -> Callable[[], None]:
        """Notice gradients that are thrown away without a step: torch has no hook for a step that GradScaler skips."""
        original, before = optimizer.zero_grad, optimizer.__dict__.get("zero_grad")
        own = weakref.ref(self)

        @functools.wraps(original)
        def zero_grad(*args: Any, **kwargs: Any) -> Any:
            attachment = own()
            if attachment is None or attachment._inside or attachment._owner.closed:  # inside: a closure's own
                return original(*args, **kwargs)
            attachment._zeroed()
            found = original(*args, **kwargs)
            attachment._remember(attachment._owner.all_steps)
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

    def _zeroed(self) -> None:
        """The gradients are about to be zeroed: were there any that no step has used?"""
        stepped, self._stepped = self._stepped, False
        gradient, version, steps = self._mark
        if not stepped and self._owner.all_steps == steps:
            now = self._some_gradient()
            if now is not None and (now is not gradient or now._version != version):
                self._owner.thrown_away(self.followed, self.number)
                return
        self._owner.zeroed(self.followed.name)

    def _remember(self, steps: int) -> None:
        """After a zero_grad, all optimizers having taken so many steps: what a backward pass would change."""
        gradient = self._some_gradient()
        self._mark = (gradient, -1 if gradient is None else gradient._version, steps)

    def _some_gradient(self) -> Any:
        return next((p.grad for p in self.followed.parameters if p.grad is not None), None)


def held_by(optimizer: Any) -> list[int]:
    """Return which parameters an optimizer holds: it changes when layers are unfrozen into a new group, or replaced."""
    return [id(p) for group in optimizer.param_groups for p in group["params"]]


def _overrides(timed: Timed, method: str) -> bool:
    return getattr(type(timed.probe), method) is not getattr(Probe, method)
