"""What an optimizer does to a weight at its next step, from torch.optim or from a checkpoint's state_dict."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import MeasurementError

#: Optimizers whose step is known here, by the name that `name=` takes.
KNOWN = ("sgd", "adam", "adamw", "adagrad", "rmsprop", "lbfgs")
_CLASSES: tuple[tuple[type, str], ...] = (
    (torch.optim.AdamW, "adamw"),  # before Adam, which it is one of
    (torch.optim.Adam, "adam"),
    (torch.optim.SGD, "sgd"),
    (torch.optim.Adagrad, "adagrad"),
    (torch.optim.RMSprop, "rmsprop"),
    (torch.optim.LBFGS, "lbfgs"),
)
_SGD = {"lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "foreach", "differentiable", "fused"}
#: What a sharpness-aware optimizer keeps in each group beside its base's settings; eta is that of `training.sam` alone.
_SHARPNESS_AWARE = {"rho", "adaptive", "eta"}
#: Keys of a group that only one optimizer has, and those that it has beside them in no other's.
_SIGNS: tuple[tuple[set[str], str], ...] = (
    ({"betas", "amsgrad"}, "adam"),
    ({"alpha", "centered"}, "rmsprop"),
    ({"lr_decay"}, "adagrad"),
    ({"history_size"}, "lbfgs"),
)
#: Keys that schedulers and training scripts write into groups, and no step reads: by them, rates were set already.
_BESIDE = {"params", "param_names", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"} | {
    "lr_scale",
    "lr_mult",
    "layer_id",
}


@dataclass(frozen=True)
class Rule:
    """The step of one parameter group, linear in the gradient once its denominators D are held:

    u <- momentum u + gain (g + coupled w) / D;  w <- (1 - lr decoupled) w - lr u (with nesterov: the step looks ahead).
    """

    lr: float
    gain: float
    momentum: float
    nesterov: bool
    coupled: float
    decoupled: float

    @property
    def rate(self) -> float:
        """What a fresh gradient moves the weight by, times D."""
        return self.lr * self.gain


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer's groups and state. `name` is one of KNOWN, "" for another; `title` is what people call it.

    `rules` belong to `groups`. `members` holds for each group its parameters as the state's keys (empty where only
    settings were given), `live` the parameters themselves by key where the optimizer is a live one.
    """

    name: str
    title: str
    groups: tuple[Mapping[str, Any], ...]
    rules: tuple[Rule, ...]
    members: tuple[tuple[int | str, ...], ...]
    state: Mapping[int | str, Mapping[str, Any]]
    live: Mapping[int, torch.nn.Parameter]
    notes: tuple[str, ...]
    #: Of an optimizer that looks like one of KNOWN and need not step alike: why, and what to do.
    doubt: str = ""
    #: How far the groups climb to take their gradient there (SAM's rho; `name` is its base); () for an ordinary step.
    climbs: tuple[float, ...] = ()
    #: Whether that distance is in units of the weights (ASAM).
    climbs_adaptively: bool = False

    @property
    def adaptive(self) -> bool:
        """Whether gradients are divided by denominators from the state."""
        return self.name in ("adam", "adamw", "adagrad", "rmsprop")

    def denominator(self, key: int | str, group: int) -> torch.Tensor | None:
        """Return D of a parameter as torch.optim's last step had it; None where it has made no step for it."""
        kept, settings = self.state.get(key) or {}, self.groups[group]
        needed = {"adagrad": "sum", "rmsprop": "square_avg"}.get(self.name, "exp_avg_sq")
        # AdaGrad makes its sums before the first step, and a fused step that was skipped for inf or NaN counts as none.
        if needed not in kept or ("step" in kept and float(kept["step"]) == 0):
            return None
        try:
            return self._divided_by(kept, settings)
        except KeyError as error:
            raise MeasurementError(
                f"the optimizer's state {key} lacks {error}, which its settings for {self.name} ask for: is its group "
                "another optimizer's, or was a setting (amsgrad, centered) changed since?"
            ) from None

    def _divided_by(self, kept: Mapping[str, Any], settings: Mapping[str, Any]) -> torch.Tensor:
        eps = float(settings["eps"])
        if self.name == "adagrad":
            return kept["sum"].sqrt() + eps
        if self.name == "rmsprop":
            square = kept["square_avg"]
            return (
                square.addcmul(kept["grad_avg"], kept["grad_avg"], value=-1) if settings["centered"] else square
            ).sqrt() + eps
        square = kept["max_exp_avg_sq" if settings.get("amsgrad") else "exp_avg_sq"]
        correction = 1 - float(settings["betas"][1]) ** float(kept["step"])
        # As torch.optim has it: the correction under the root, eps outside of both.
        return square.sqrt() / math.sqrt(correction) + eps


def read_optimizer(optimizer: Any, name: str | None = None) -> OptimizerState:
    """Return the rule and the state of a torch optimizer, of an optimizer's state_dict, or of plain settings.

    Args:
        optimizer: a torch.optim.Optimizer; its `state_dict()`, as a checkpoint keeps it; or one group's settings
            (`{"lr": 0.1, "momentum": 0.9}`), or a list of them.
        name: which of sgd, adam, adamw, adagrad, rmsprop and lbfgs it is. A state_dict does not say: by default it is
            known by the settings it keeps, where Adam and AdamW of torch before 2.6 look the same. What has settings of
            its own beside those of one (LARS, AdaBelief), or is a subclass with another step, is not taken for it. A
            sharpness-aware one (SAM, ASAM) is known by its rho and adaptive, and `name` is then its base.

    Raises MeasurementError for an unknown name, for what is no optimizer or lacks a setting, and for settings that no
    optimizer can have: a learning rate, momentum or weight decay that is negative or not finite, a beta outside [0, 1).
    """
    if name is not None and name not in KNOWN:
        raise MeasurementError(f"optimizer {name!r} is not one of {', '.join(KNOWN)}")
    live: dict[int, torch.nn.Parameter] = {}
    found, title, doubt = name, "", ""
    climber: torch.optim.Optimizer | None = None
    if isinstance(optimizer, torch.optim.Optimizer):
        title = type(optimizer).__name__
        if not hasattr(optimizer, "param_groups"):
            raise MeasurementError(f"{title} has no parameter groups: pass the optimizer that it steps by")
        inner = getattr(optimizer, "optimizer", None)
        # Others that keep one inside (Lookahead, schedule-free, projected gradients) step otherwise than it.
        if isinstance(inner, torch.optim.Optimizer) and (name is not None or title == "AcceleratedOptimizer"):
            return read_optimizer(inner, name)
        if name is None:
            found, doubt = _stepping_as(optimizer)
            climber = optimizer
        every = [p for group in optimizer.param_groups for p in group["params"]]
        live = dict(enumerate(every))
        optimizer = _kept_by(optimizer)
    # The settings of one that isn't known are its own affair, and its rate may have another name.
    groups, state = _groups(optimizer, rates=found != "")
    # Every key that any group has, and the first one's values: what one group has of its own may be how it steps.
    keys = {k: v for g in reversed(groups) for k, v in g.items()}
    whole = isinstance(optimizer, Mapping) and "param_groups" in optimizer
    base = _base_of_sharpness_aware(keys, whole)
    if base:
        doubt = _climbing_otherwise(climber, base) if climber is not None else ""
        found, base = ("", "") if doubt else (name or base, base)
    elif found is None:
        found, doubt = _recognized(keys, whole)
    try:
        rules = tuple(_rule(found, g, state) for g in groups) if found not in ("", "lbfgs") else ()
    except MeasurementError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise MeasurementError(
            f"the optimizer's settings don't fit {found}: {type(error).__name__} {error}; name the right one of "
            f"{', '.join(KNOWN)}"
        ) from None
    members = tuple(tuple(g.get("params", ())) for g in groups)
    notes = _notes(found, name, groups)
    if not base:
        return OptimizerState(found, found or title, groups, rules, members, state, live, notes, doubt)
    climbs = tuple(_at_least_0("rho", g.get("rho", 0)) for g in groups)
    adaptively = any(g.get("adaptive") for g in groups)
    if "eta" not in keys:
        notes += (
            f"taken for SAM around {found} by the rho and adaptive of its groups: one that climbs otherwise than by "
            "rho g / ||g|| over all weights (unnormalized, or each layer by itself) has another threshold",
        )
    title = f"{'asam' if adaptively else 'sam'}({found})"
    return OptimizerState(found, title, groups, rules, members, state, live, notes, "", climbs, adaptively)


def _kept_by(optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
    """Return a live optimizer's state_dict; its groups alone where it keeps a form of its own (many a Lookahead)."""
    kept = optimizer.state_dict()
    if "param_groups" in kept:
        return kept
    numbers = itertools.count()
    groups = [{**g, "params": [next(numbers) for _ in g["params"]]} for g in optimizer.param_groups]
    return {"param_groups": groups}


def _groups(optimizer: Any, rates: bool) -> tuple[tuple[Mapping[str, Any], ...], Mapping[int | str, Mapping[str, Any]]]:
    state: Any = {}
    if isinstance(optimizer, Mapping) and "param_groups" in optimizer:
        optimizer, state = optimizer["param_groups"], optimizer.get("state", {})
    elif isinstance(optimizer, Mapping):
        optimizer = [optimizer]
    if not isinstance(optimizer, Sequence) or not optimizer or not all(isinstance(g, Mapping) for g in optimizer):
        raise MeasurementError(
            f"expected a torch optimizer, its state_dict or its settings, got {type(optimizer).__name__}"
        )
    lacking = next((g for g in optimizer if "lr" not in g), None) if rates else None
    if lacking is not None:
        raise MeasurementError(f"a parameter group has no learning rate 'lr' (it has {', '.join(map(str, lacking))})")
    return tuple(optimizer), state


def _base_of_sharpness_aware(group: Mapping[str, Any], whole: bool) -> str:
    """Return which optimizer a SAM is built around that keeps these settings; "" where they are no SAM's for sure.

    A rho alone may be anything (Adadelta's, Sophia's, elastic averaging's), and what has more settings of its own
    (LookSAM, ESAM, bSAM) steps otherwise.
    """
    rest = {k: v for k, v in group.items() if k not in _SHARPNESS_AWARE}
    return _recognized(rest, whole)[0] if {"rho", "adaptive"} <= set(group) else ""


def _climbing_otherwise(optimizer: torch.optim.Optimizer, base: str) -> str:
    """Return why a live optimizer with SAM's settings isn't taken for SAM around a base; "" where it is."""
    if type(optimizer).__name__.upper() not in ("SAM", "ASAM"):
        return (
            f"its groups are those of SAM around {base}, and it may climb otherwise; where it climbs as SAM does, name "
            f"its base: optimizer={base!r} (name={base!r} in Python)"
        )
    inner = getattr(optimizer, "base", getattr(optimizer, "base_optimizer", None))
    return _stepping_as(inner)[1] if isinstance(inner, torch.optim.Optimizer) else ""


def _recognized(group: Mapping[str, Any], whole: bool) -> tuple[str, str]:
    """Return (which optimizer keeps these settings, ""), or ("", why none is known that does).

    `whole`: they are all that it keeps, as a state_dict has them, and not those that somebody named.
    """
    keys = set(group) - _BESIDE
    if "momentum_decay" in keys:  # NAdam
        return "", ""
    like = next((name for signs, name in _SIGNS if signs <= keys), "")
    like = like or ("sgd" if {"dampening", "nesterov"} <= keys or (keys <= _SGD and not whole) else "")
    # A text is a label that somebody gave the group.
    more = [key for key in group if key in keys - _settings(like) and not isinstance(group[key], str)] if like else []
    if more:
        why = _told_apart(f"its groups have {', '.join(map(str, more))} beside the settings of", like)
        return "", why + ("; where it is SAM around that, give its groups adaptive=False" if more == ["rho"] else "")
    return "adamw" if like == "adam" and group.get("decoupled_weight_decay") else like, ""


def _settings(name: str) -> set[str]:
    """Return the keys that the groups of a known optimizer may have: torch's own, older versions' among them."""
    kind = next((kind for kind, known in _CLASSES if known == name), torch.optim.Optimizer)
    return set(inspect.signature(kind).parameters) | {"decoupled_weight_decay"}


def _stepping_as(optimizer: torch.optim.Optimizer) -> tuple[str, str]:
    """Return (which known optimizer's step a live one makes, ""), or ("", why that isn't known)."""
    for kind, name in _CLASSES:
        if isinstance(optimizer, kind):
            # torch wraps the step of each class when it is first used.
            same = inspect.unwrap(type(optimizer).step) is inspect.unwrap(kind.step)
            return (name, "") if same else ("", _told_apart("it has a step of its own beside that of", name))
    return "", ""


def _told_apart(what: str, name: str) -> str:
    return f"{what} torch's {name}; where it steps as that does, name it: optimizer={name!r} (name={name!r} in Python)"


def _rule(name: str, group: Mapping[str, Any], state: Mapping[int | str, Mapping[str, Any]]) -> Rule:
    lr, decay = _at_least_0("lr", group["lr"]), _at_least_0("weight_decay", group.get("weight_decay", 0))
    gain, momentum, nesterov, decoupled = 1.0, 0.0, False, False
    if name == "sgd":
        momentum = _at_least_0("momentum", group.get("momentum", 0))
        nesterov = bool(group.get("nesterov", False)) and momentum != 0
        gain = (
            1 - _at_least_0("dampening", group.get("dampening", 0), most=1) if momentum != 0 else 1.0
        )  # torch.optim: no buffer, no dampening
    elif name in ("adam", "adamw"):
        momentum, _ = (_at_least_0(f"betas[{i}]", group["betas"][i], below=1) for i in range(2))
        gain = 1 - momentum
        decoupled = bool(group.get("decoupled_weight_decay", name == "adamw"))
    elif name == "rmsprop":
        momentum = _at_least_0("momentum", group.get("momentum", 0))
    elif name == "adagrad":
        steps = [float(state[i]["step"]) for i in group.get("params", ()) if "step" in state.get(i, {})]
        lr /= 1 + max(max(steps, default=1) - 1, 0) * float(group.get("lr_decay", 0))
    return Rule(lr, gain, momentum, nesterov, 0.0 if decoupled else decay, decay if decoupled else 0.0)


def _at_least_0(name: str, value: Any, *, most: float = math.inf, below: float = math.inf) -> float:
    """Return a setting as a number, or raise MeasurementError: torch's optimizers refuse it, or step away with it."""
    number = float(value)
    if not (math.isfinite(number) and 0 <= number <= most and number < below):
        upper = f" and at most {most:g}" if most < math.inf else f" and below {below:g}" if below < math.inf else ""
        raise MeasurementError(f"{name}={number:g} of the optimizer must be a finite number of at least 0{upper}")
    return number


def _notes(found: str, name: str | None, groups: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    guessed = found == "adam" and name is None and any("decoupled_weight_decay" not in g for g in groups)
    if guessed and any(float(g.get("weight_decay", 0)) for g in groups):
        return (
            "the optimizer's settings don't say whether it is Adam or AdamW (torch before 2.6): taken for Adam, whose "
            "weight decay is added to the gradient; name it (optimizer='adamw') if it isn't",
        )
    return ()
