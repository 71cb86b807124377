"""The registries of losses, schedules and optimizers, and the decorators with which users add their own.

from landscape import losses

@losses.register("mine", kind="regression")
def mine(outputs, target, *, power=3.0):
    "Mean of the errors to a power."
    return (outputs - target).abs().pow(power).mean()

losses.get("mine", power=4.0), losses.build("mine(power=4)"), losses.build("0.9*mse + ramp(0, 0.1)*mine")
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import TrainingError
from .expressions import Call, Product, parse_call, parse_sum
from .registry import About, Entry, F, Registry, first_line_of, nearest, options_of

if TYPE_CHECKING:
    from .inputs import Takes

#: Kinds of task that a loss is for.
Kind = Literal[
    "classification", "regression", "metric learning", "segmentation", "detection", "domain", "regularization"
]


@dataclass(frozen=True)
class LossEntry(Entry):
    """A loss: the kind of task it is for, what it takes, whether batches may be cut, and how it is checked.

    `rebatch` is False where the loss couples the samples of a batch. `trial` are the settings with which `gate.examine`
    checks it. `second` says whether it has a second derivative where it has a first.
    """

    kind: str = "classification"
    takes: Takes | None = None
    rebatch: bool = True
    trial: Mapping[str, Any] = field(default_factory=dict)
    second: bool = True


class Losses(Registry[LossEntry]):
    """Losses by name. Each returns a mean (or `{term: mean}`) as `loss(outputs, target)`."""

    def register(
        self,
        name: str,
        *,
        kind: Kind = "classification",
        takes: Takes | None = None,
        source: str = "",
        about: About | None = None,
        rebatch: bool = True,
        trial: Mapping[str, Any] | None = None,
        second: bool = True,
        torch: str = "",
        doc: str = "",
    ) -> Callable[[F], F]:
        """Register a function `(outputs, target, **settings)` or a class of torch.nn.Module as a loss.

        Args:
            name: an identifier that no schedule has.
            kind: of task.
            takes: what outputs and targets it takes (`landscape.training.inputs`), checked at every call; None for no
                check.
            source: the paper.
            about: parameter -> (what it means, where its default comes from), and as a third the interval that its
                numbers lie in, such as "[0, inf)"; the defaults are the signature's.
            rebatch: False where the loss couples the samples of a batch.
            trial: settings with which it is checked: what has no default, and those under which autograd's gradient
                is the derivative of the value, where a paper holds a factor fixed.
            second: False where there is no second derivative.
            torch: PyTorch's class, where it is that one.
            doc: a line about it, by default the first of the docstring.

        Raises TrainingError for a name that is taken, and for an unknown kind or parameter.
        """
        if kind not in get_args(Kind):
            raise TrainingError(f"kind={kind!r} is not one of {', '.join(get_args(Kind))}")

        def register(thing: F) -> F:
            is_class = isinstance(thing, type)
            options = options_of(thing, about, skip=0 if is_class else 2)
            make = thing if is_class else functools.partial(_named, name, thing, takes, rebatch)
            facts = (trial or {}, second)
            self.add(
                LossEntry(
                    name, make, doc or first_line_of(thing), source, options, torch, kind, takes, rebatch, *facts
                ),
                thing,
            )
            return thing

        return register

    def factory(
        self,
        name: str,
        *,
        kind: Kind = "classification",
        takes: Takes | None = None,
        source: str = "",
        about: About | None = None,
        trial: Mapping[str, Any] | None = None,
        torch: str = "",
    ) -> Callable[[F], F]:
        """Register a function `(**settings)` that returns a loss. See `register`."""

        def register(make: F) -> F:
            options = options_of(make, about)
            facts = (True, trial or {})
            self.add(LossEntry(name, make, first_line_of(make), source, options, torch, kind, takes, *facts), make)
            return make

        return register

    def parse(self, text: str) -> tuple[tuple[Product, Call], ...]:
        """Return each summand of a weighted sum with the call that is its loss; nothing is made yet.

        Raises TrainingError for an unknown name (the nearest ones are offered), a wrong parameter, and a summand
        without a loss or with two.
        """
        found = []
        for product in parse_sum(text):
            own = [c for c in product.calls if c.name in self]
            for call in product.calls:
                if call not in own and call.name not in schedules:
                    known = [*self.entries(), *schedules.entries()]
                    raise TrainingError(f"there is no loss or schedule {call.name!r}{nearest(call.name, known)}")
            if len(own) != 1:
                raise TrainingError(
                    f"the summand {str(product)!r} of {text!r} has {len(own)} losses; expected one, times numbers and "
                    "schedules"
                )
            self.entry(own[0].name).settings(*own[0].given, **own[0].named)
            found.append((product, own[0]))
        return tuple(found)

    def build(self, text: str) -> Any:
        """Return the loss that a string describes: one name with settings, or a weighted sum.

        `0.9*cross_entropy + ramp(0, 0.1)*soft_ece` gives a `WeightedLoss`, whose value is {term: weighted mean}; a
        plain `focal(gamma=2)` the loss itself. Nothing is evaluated. Raises TrainingError as `parse` does.
        """
        from .weighted import Term, WeightedLoss

        parsed = self.parse(text)
        product, call = parsed[0]
        if len(parsed) == 1 and product.coefficient == 1 and len(product.calls) == 1:
            return self.make(call)
        terms = []
        for product, call in parsed:
            driven = [schedules.make(c) for c in product.calls if c is not call]
            terms.append(Term(call.name, self.make(call), product.coefficient, tuple(driven)))
        return WeightedLoss(terms)

    def check(self, text: str, outputs: Any, target: Any) -> None:
        """Raise ObjectiveError unless every summand of `text` takes these outputs and targets: before training."""
        for _, call in self.parse(text):
            takes = self.entry(call.name).takes
            if takes is not None:
                takes.check(outputs, target, call.name)


def _named(name: str, function: Callable[..., Any], takes: Takes | None, rebatch: bool, **settings: Any) -> Any:
    from .loss import NamedLoss

    return NamedLoss(name, function, settings, takes, rebatch)


@dataclass(frozen=True)
class ScheduleEntry(Entry):
    """A schedule: whether it multiplies a base value or is the value itself."""

    relative: bool = True


class Schedules(Registry[ScheduleEntry]):
    """Schedules by name: functions of the progress of a run that drive any named scalar."""

    def register(self, name: str, *, source: str = "", about: About | None = None, torch: str = "") -> Callable[[F], F]:
        """Register a class of `landscape.training.schedule.Schedule`; see `Losses.register` for the arguments."""

        def register(thing: F) -> F:
            relative = bool(getattr(thing, "relative", True))
            options = options_of(thing, about)
            self.add(ScheduleEntry(name, thing, first_line_of(thing), source, options, torch, relative), thing)
            return thing

        return register


@dataclass(frozen=True)
class OptimizerEntry(Entry):
    """An optimizer: the threshold of its stability and of which operator, and whether it needs full batches."""

    threshold: str = ""
    operator: str = ""
    full_batch: bool = False


class Optimizers(Registry[OptimizerEntry]):
    """Optimizers by name: `optimizers.get("sgd", lr=0.1)` is a recipe, called with the parameters.

    One that is built around another takes it as a setting: `optimizers.build("sam(sgd(lr=0.1), rho=0.05)")`.
    """

    def register(
        self,
        name: str,
        *,
        source: str = "",
        about: About | None = None,
        torch: str = "",
        threshold: str = "",
        operator: str = "",
        full_batch: bool = False,
        closure: bool = False,
        base: str = "",
        doc: str = "",
    ) -> Callable[[F], F]:
        """Register `(params, **settings) -> torch.optim.Optimizer`, or a class of optimizers.

        `threshold` is the largest stable eigenvalue as a formula and `operator` whose eigenvalue it is
        (`landscape.stability_threshold` computes it). `closure` says that `step` takes a closure that computes the
        gradients. `base` names the parameter that is an optimizer itself, whose recipe is handed in; in place of
        `params` a sweep then hands in the model. See `Losses.register` for the others.
        """

        def register(thing: F) -> F:
            from .recipe import Recipe

            options = options_of(thing, about, skip=1)
            make = functools.partial(Recipe, name, thing, full_batch, closure, base)
            facts = (threshold, operator, full_batch)
            entry = OptimizerEntry(name, make, doc or first_line_of(thing), source, options, torch, *facts, base=base)
            self.add(entry, thing)
            return thing

        return register

    def build(self, text: str) -> Any:
        """Return the recipe that a string describes: `adam(lr=0.01)`, `sam(adam(lr=0.01))`. Nothing is evaluated."""
        return self.make(self.parse(text))

    def parse(self, text: str) -> Call:
        """Return the parsed call that a string holds; nothing is made yet. Raises TrainingError for anything else."""
        return parse_call(text, nested=True)

    def with_rate(self, call: Call, lr: float) -> Call:
        """Return the call with this learning rate, which goes to the optimizer that steps: the innermost one.

        Raises TrainingError where it has one already.
        """
        entry = self.entry(call.name)
        given = dict(zip(entry.options, call.given, strict=False))
        if entry.base:
            default = entry.options[entry.base].default
            inner = call.named.get(entry.base, given.get(entry.base, default))
            if isinstance(inner, str):
                inner = self.parse(inner)
            if not isinstance(inner, Call):
                return call  # what it is, is said where it is made
            inner = self.with_rate(inner, lr)
            if entry.base in given:
                place = list(given).index(entry.base)
                return Call(call.name, (*call.given[:place], inner, *call.given[place + 1 :]), call.named)
            return Call(call.name, call.given, {**call.named, entry.base: inner})
        if "lr" in call.named or "lr" in given:
            raise TrainingError(f"{call} has a learning rate of its own, and lr={lr:g} is given, too")
        return Call(call.name, call.given, {**call.named, "lr": lr})


losses = Losses("loss", "landscape.training.losses")
schedules = Schedules("schedule", "landscape.training.schedules")
optimizers = Optimizers("optimizer", "landscape.training.optimizers")
