"""The hooks on one optimizer: what runs inside a training step, and so is written to be quick."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from .following import count
from .probe import Followed, Probe, Run, Step
from .timing import Timed


class Owner(Protocol):
    """What an attachment tells the recorder."""

    #: Seconds spent recording so far.
    recording: float
    closed: bool

    def begin(self) -> None:
        """The first step is about to be taken."""

    def stepped(self, name: str, number: int, started: float) -> None:
        """An optimizer has taken a step; the hooks of this step began at `started`."""

    def thrown_away(self, followed: Followed, number: int) -> None:
        """Gradients were zeroed without a step."""

    def changed(self, name: str) -> Followed:
        """The optimizer holds other parameters than before; return what is followed from now on."""
        ...


class Attachment:
    """Hooks of one optimizer, on behalf of the cheap probes; `taken` counts its steps.

    Costs 10 microseconds a step without a probe.
    """

    def __init__(self, owner: Owner, run: Run, followed: Followed, probes: Sequence[Timed]) -> None:
        self._owner, self._run, self.followed = owner, run, followed
        self.taken = 0
        self._count = count(followed.optimizer)
        self._step = Step(followed, 0)
        self._inside = self._closure = False
        self._stepped = True
        self._started = 0.0
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
        self._owner.thrown_away(self.followed, self.number)

    def _pre(self, optimizer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        owner = self._owner
        if owner.closed:
            return
        self._started = started = time.perf_counter()
        owner.begin()
        held = 0
        for group in optimizer.param_groups:
            held += len(group["params"])
        if held != self._count:
            self._count, self.followed = held, owner.changed(self.followed.name)
        number = self.taken + 1
        scale = getattr(optimizer, "grad_scale", None)
        self._step = step = Step(self.followed, number, scale, getattr(optimizer, "found_inf", None))
        # The arguments begin with the optimizer itself.
        self._closure = (len(args) > 1 and args[1] is not None) or kwargs.get("closure") is not None
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
        owner.stepped(self.followed.name, number, started)

    def _watch_zero_grad(self, optimizer: Any) -> Callable[[], None]:
        """Notice gradients that are thrown away without a step: torch has no hook for a step that GradScaler skips."""
        original = optimizer.zero_grad
        own = weakref.ref(self)

        @functools.wraps(original)
        def zero_grad(*args: Any, **kwargs: Any) -> Any:
            attachment = own()
            if attachment is not None and not attachment._inside:  # inside: a closure's own
                if not attachment._stepped:
                    attachment._zeroed()
                attachment._stepped = False
            return original(*args, **kwargs)

        optimizer.zero_grad = zero_grad

        def unwrap() -> None:
            # Somebody may have wrapped it again meanwhile: then ours stays inside theirs, and does nothing.
            if optimizer.__dict__.get("zero_grad") is zero_grad:
                del optimizer.zero_grad

        return unwrap

    def _zeroed(self) -> None:
        if not self._owner.closed and any(p.grad is not None for p in self.followed.parameters):
            self._owner.thrown_away(self.followed, self.taken + 1)


def _overrides(timed: Timed, method: str) -> bool:
    return getattr(type(timed.probe), method) is not getattr(Probe, method)
