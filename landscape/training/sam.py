"""Sharpness-aware minimization around any optimizer of torch: climb along the gradient, step by the one found there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook

from ..dynamics.norms import joint_norm, tensor_norms
from ..dynamics.sharded import is_sharded
from ..errors import TrainingError

#: What each parameter group carries beside its base optimizer's settings; a schedule may drive rho.
OWN = ("rho", "adaptive", "eta")


class SAM(torch.optim.Optimizer):
    """Step from w along the gradient at w + e, where e climbs to a higher loss at the distance rho.

    e = rho g / ||g|| over all parameters together, g the gradient at w (Foret et al. 2021, arXiv:2010.01412, equation
    2); `adaptive`: e = rho T^2 g / ||T g||, T = |w| + eta on weights and 1 elsewhere (Kwon et al. 2021,
    arXiv:2102.11600, and their implementation: elsewhere is what has no "weight" in its name; without names, what has
    one dimension). The base optimizer steps from w by the gradient at w + e, and adds weight decay and momentum to that
    alone. Where g is 0 or not finite nothing is climbed.

        optimizer = SAM(model, optimizers.build("sgd(lr=0.1, momentum=0.9)"), rho=0.05)
        def closure():
            loss = criterion(model(x), y)
            loss.backward()
            return loss
        loss = optimizer.step(closure)          # the loss at w; gradients are zeroed before each of the two calls

    `first_step` and `second_step` are the two halves, for loops written around them. Groups and state are the base's
    (`param_groups` is one list), with rho, adaptive and eta in each group: schedules of the learning rate, checkpoints
    and recorders see one optimizer that takes one step.

    Args:
        params: the model, whose parameters that train are taken; or parameters, (name, parameter) pairs, or groups of
            either, which may have their own rho. By a model its buffers are known; else they are found by hooks on all
            modules that run in the second pass, of which torch.compile warns.
        base: makes the optimizer of these groups: a recipe of `landscape.optimizers`, or any such function.
        rho: the distance, as the loss's own scale has it; adaptive, eta: see above.

    Costs two gradients a step and a copy of the weights. `ascent_norm` is ||g|| of the last step, a float64 tensor.
    Raises TrainingError for sharded parameters, sparse gradients, and where no gradient is to be had.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        base: Callable[[Any], torch.optim.Optimizer],
        rho: float = 0.05,
        *,
        adaptive: bool = False,
        eta: float = 0.01,
    ) -> None:
        self._ascent: dict[str, Any] = {"rho": rho, "adaptive": adaptive, "eta": eta}
        self._model = params if isinstance(params, nn.Module) else None
        if isinstance(params, nn.Module):
            params = [(n, p) for n, p in params.named_parameters() if p.requires_grad]
        groups, names = _without_names(params)
        self._names = {id(p): n for p, n in names}
        #: The weights as they were, while they are moved.
        self._held: list[tuple[Tensor, Tensor]] = []
        self.ascent_norm: Tensor | None = None
        super().__init__(groups, self._ascent)
        self.base = base(self.param_groups)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self.defaults = {**self.base.defaults, **self._ascent}

    # ------------------------------------------------------------------------------------------- stepping

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step, and return what the closure gave at w. It is called twice: at w, and at w + e.

        The second call leaves buffers as the first one left them: running statistics of BatchNorm count each batch
        once, at the weights that are kept. Each call draws its own dropout.
        """
        if closure is None:
            raise TrainingError(
                "SAM needs two gradients a step: call step(closure), or first_step() and second_step() with a backward "
                "pass before each; with GradScaler first_step(), backward, restore(), and scaler.step(optimizer.base)"
            )
        with torch.enable_grad():
            self._forget_gradients()
            loss = closure()
            self.first_step()
            try:
                self._forget_gradients()
                with kept_buffers(self._model):
                    closure()
            finally:
                self.restore()
        self.base.step()
        return loss

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Move the weights from w to w + e along the gradients that they have."""
        if self._held:
            raise TrainingError("first_step was called twice: second_step, or restore, comes in between")
        moved = [(p, g, p.grad) for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not moved:
            raise TrainingError("no parameter has a gradient to climb along: call backward before first_step")
        if any(d.layout != torch.strided for _, _, d in moved):
            raise TrainingError("SAM can't climb along sparse gradients; use Embedding(..., sparse=False)")
        scales = [self._scale(p, g) for p, g, _ in moved]
        self.ascent_norm = norm = joint_norm(tensor_norms([d for _, _, d in moved]))
        if any(s is not None for s in scales):
            norm = joint_norm(
                tensor_norms([d if s is None else s * d for (_, _, d), s in zip(moved, scales, strict=True)])
            )
        usable = torch.isfinite(norm) & (norm > 0)
        self._held = [(p, p.detach().clone()) for p, _, _ in moved]
        for (p, group, d), scale in zip(moved, scales, strict=True):
            climb = d if scale is None else scale.square() * d
            p.add_(torch.where(usable.to(d.device), climb * (group["rho"] / norm).to(d), 0.0))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Move the weights from w + e back to w, bit for bit; without a first_step do nothing."""
        for p, weights in self._held:
            p.copy_(weights)
        self._held = []

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Move the weights back to w, and let the base optimizer step by the gradients that they have."""
        if not self._held:
            raise TrainingError("second_step comes behind first_step and a backward pass")
        self.restore()
        self.base.step()
        if zero_grad:
            self.zero_grad()

    def _scale(self, p: Tensor, group: Mapping[str, Any]) -> Tensor | None:
        """Return T of a parameter; None for 1."""
        name = self._names.get(id(p))
        weight = p.ndim > 1 if name is None else "weight" in name
        return p.abs() + group["eta"] if group["adaptive"] and weight else None

    def _forget_gradients(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    # ------------------------------------------------------------------------------------------- groups and state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, to the base optimizer, too."""
        groups, names = _without_names([param_group])
        self._names.update({id(p): n for p, n in names})
        group = {**self._ascent, **groups[0]}
        if any(is_sharded(p) for p in group["params"]):
            raise TrainingError("SAM can't climb along sharded gradients: it needs the norm of all of them together")
        if not (isinstance(group["rho"], int | float) and 0 <= group["rho"] < float("inf")):
            raise TrainingError(f"rho={group['rho']!r} of SAM must be a number of at least 0")
        base = self.__dict__.get("base")
        if base is None:
            super().add_param_group(group)
        else:
            base.add_param_group(group)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state, with rho, adaptive and eta in each group."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state; one of the base optimizer alone keeps this one's rho, adaptive and eta."""
        own = [{k: g[k] for k in OWN} for g in self.param_groups]
        self.base.load_state_dict(state_dict)
        self._share()
        for group, mine in zip(self.param_groups, own, strict=True):
            group.update({k: v for k, v in mine.items() if k not in group})

    def __getstate__(self) -> dict[str, Any]:
        own = ("base", "ascent_norm", "_ascent", "_model", "_names", "_held")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}


@contextlib.contextmanager
def kept_buffers(model: nn.Module | None = None) -> Iterator[None]:
    """Put back what forward passes inside write to buffers, such as running statistics.

    Those of a model; without one those of all modules that run, which a hook on all modules finds.
    """
    seen: set[int] = set()
    kept: list[tuple[nn.Module, str, Tensor, int, Tensor]] = []

    def keep(module: nn.Module, args: Any = ()) -> None:
        if id(module) in seen:
            return
        for m in module.modules():
            if id(m) not in seen:
                seen.add(id(m))
                kept.extend((m, n, b, b._version, b.clone()) for n, b in m._buffers.items() if b is not None)

    handle = None
    if model is not None:
        keep(model)
    else:
        handle = register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        with torch.no_grad():
            for module, name, buffer, version, value in kept:
                # A compiled model writes running statistics without counting it as a change.
                if buffer._version != version or isinstance(module, _NormBase):
                    buffer.copy_(value)
                module._buffers[name] = buffer


def _without_names(params: Iterable[Any]) -> tuple[list[dict[str, Any]], list[tuple[Tensor, str]]]:
    """Return (groups of parameters alone, the names that came with them)."""
    given: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    groups: list[Any] = given if given and isinstance(given[0], Mapping) else [{"params": given}]
    names: list[tuple[Tensor, str]] = []
    found = []
    for group in groups:
        listed = group["params"]
        plain = []
        for item in [listed] if isinstance(listed, Tensor) else listed:
            name, p = item if isinstance(item, tuple) else (None, item)
            plain.append(p)
            if name is not None:
                names.append((p, name))
        found.append({**group, "params": plain})
    return found, names
