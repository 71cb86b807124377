"""Directions through weight space: random with the norms of the filters (Li et al. 2018), or anyone's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, get_args

import torch
from torch import nn

from ..errors import MeasurementError
from ..objective import Objective
from ..parameters import filter_dim, is_scale, owners, trainable, unwrap
from ..results import Option
from ..tasks import Task

Normalize = Literal["filter", "layer", "weight"]
Ignore = Literal["biasbn"]
#: The options of measurements that move along directions.
NORMALIZE = Option(
    "filter",
    "scale of the random directions: filter, layer, weight or None",
    "Li et al. 2018",
    (*get_args(Normalize), None),
)
IGNORE = Option(
    "biasbn", "biasbn: biases and normalization layers stay in place; or None", "Li et al. 2018", ("biasbn", None)
)

#: Li et al. 2018 add this to the norm of each random filter (net_plotter.py of their code).
EPSILON = 1e-10
#: Two directions with a larger |cosine| are parallel: they span no plane (chosen by us: 0.08 degrees apart).
PARALLEL = 1 - 1e-6
#: torch's CPU generator keeps 32 bits of a seed: two seeds that differ by 2**32 draw the same numbers.
SEEDS = 2**32


class Direction(Mapping[str, torch.Tensor]):
    """A direction in weight space: one tensor for each trainable parameter by name; the tensors are its own copies.

    Args:
        tensors: parameter name -> tensor of the parameter's shape, for every trainable parameter (tied ones once,
            frozen ones and buffers left out). A parameter that shall stay where it is has zeros.
        label: what figures call it.
        seed, normalize, ignore: how it was drawn; None for a direction that wasn't.
        notes: what a reader of the picture should know.
        filter_dims: name -> dimension along which the filters lie, where that isn't dimension 0.

    `norm` is the Euclidean norm over all tensors, summed in float64. Raises TypeError for what is no real tensor,
    MeasurementError for a value that is not finite and for a norm of zero.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        label: str = "given",
        seed: int | None = None,
        normalize: Normalize | None = None,
        ignore: Ignore | None = None,
        notes: Iterable[str] = (),
        filter_dims: Mapping[str, int] | None = None,
    ) -> None:
        if not isinstance(tensors, Mapping):
            raise TypeError(f"a direction is a mapping of parameter names to tensors, got {type(tensors).__name__}")
        for name, t in tensors.items():
            if not isinstance(t, torch.Tensor) or t.is_complex():
                got = str(t.dtype) if isinstance(t, torch.Tensor) else type(t).__name__
                raise TypeError(f"the direction's {name!r} must be a real torch.Tensor, got {got}")
        # Copies: the caller's tensors may be the live weights, which move while the loss is evaluated along them.
        self._tensors = {str(name): t.detach().clone() for name, t in tensors.items()}
        self.label = label
        self.seed = seed
        self.normalize: Normalize | None = normalize
        self.ignore: Ignore | None = ignore
        self.notes = tuple(notes)
        self.filter_dims = dict(filter_dims or {})
        self.norm = _norm(self._tensors.values())
        if not math.isfinite(self.norm):
            wrong = [repr(n) for n, t in self._tensors.items() if not bool(torch.isfinite(t).all())]
            raise MeasurementError(
                f"the direction {label!r} is not finite in {wrong[0] if wrong else 'its norm'}: give finite numbers "
                "(diverged weights, perhaps?)"
            )
        if self.norm == 0:
            raise MeasurementError(
                f"the direction {label!r} has norm zero: there is nowhere to go along it (all weights zero, or "
                "ignore='biasbn' on a model whose parameters, complex ones apart, all have at most one dimension?)"
            )

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        return self is other  # a mapping's own equality would ask tensors for one truth value

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"Direction({self.label!r}, {len(self)} tensors, norm {self.norm:.6g})"

    def tensors(self, names: Iterable[str]) -> tuple[torch.Tensor, ...]:
        """Return the tensors of exactly these parameters, in this order.

        Raises MeasurementError that names a parameter which is missing here, or is here and unknown there.
        """
        wanted = tuple(names)
        missing = [n for n in wanted if n not in self._tensors]
        unknown = [n for n in self._tensors if n not in set(wanted)]
        if unknown:
            raise MeasurementError(
                f"the direction {self.label!r} has {unknown[0]!r}, which is no trainable parameter of this model "
                "(frozen ones, second names of tied ones and buffers such as BatchNorm's statistics are never moved): "
                "leave it out"
            )
        if missing:
            raise MeasurementError(
                f"the direction {self.label!r} lacks {missing[0]!r} ({len(missing)} of {len(wanted)} parameters): give "
                "a tensor for each trainable parameter, zeros for those that shall stay"
            )
        return tuple(self._tensors[n] for n in wanted)

    def fitted(self, objective: Objective) -> Direction:
        """Return this direction in the names, shapes, device and dtype of an entered Objective (itself if it fits).

        Raises MeasurementError where a name or a shape differs.
        """
        found = self.tensors(objective.names)
        for name, d, w in zip(objective.names, found, objective.parameters, strict=True):
            if d.shape != w.shape:
                raise MeasurementError(
                    f"the direction {self.label!r} has shape {tuple(d.shape)} for {name!r}, whose shape is "
                    f"{tuple(w.shape)}: was it made for another model?"
                )
        if all(d.device == w.device and d.dtype == w.dtype for d, w in zip(found, objective.parameters, strict=True)):
            return self
        return self._replaced(
            {n: d.to(w.device, w.dtype) for n, d, w in zip(objective.names, found, objective.parameters, strict=True)}
        )

    def of_norm(self, length: float) -> Direction:
        """Return this direction with another Euclidean norm."""
        return self._replaced({n: t * (length / self.norm) for n, t in self.items()})

    def _replaced(self, tensors: Mapping[str, torch.Tensor], note: str = "") -> Direction:
        return Direction(
            tensors,
            label=self.label,
            seed=self.seed,
            normalize=self.normalize,
            ignore=self.ignore,
            notes=(*self.notes, note) if note else self.notes,
            filter_dims=self.filter_dims,
        )


def random_direction(
    task: Task | Objective,
    seed: int = 0,
    normalize: Normalize | None = "filter",
    ignore: Ignore | None = "biasbn",
) -> Direction:
    """Draw a Gaussian direction and give it the weights' own scale (Li et al. 2018, arXiv:1712.09913, section 4).

    d ~ N(0, 1), one number for each trainable parameter: frozen ones are left out, tied ones come once, BatchNorm's
    running statistics are no parameters. Then each tensor w of more than one dimension gives d its scale:

    - "filter" (default, Li et al.): d[i] *= ||w[i]|| / (||d[i]|| + 1e-10) for each filter i. Filters lie along
      dimension 0; along dimension 1 for ConvTranspose and Transformers' Conv1D, which the notes then say. A filter
      of norm zero gets the direction zero, and the notes count them.
    - "layer": d *= ||w|| / ||d|| over the whole tensor. "weight": d *= w, each by each. None: d as drawn.

    Tensors of at most one dimension (biases, the scales of normalization layers) stay where they are with
    `ignore="biasbn"` (default, Li et al.); with `ignore=None` they get d = w, as in the authors' code (d as drawn where
    `normalize` is None too). So do scales of one number for each filter in another shape, and the notes name them:
    weight_norm's g and (channels, 1, 1) layer scales. Normalized, they would go through 0 at a distance of 1, and the
    filters with them (chosen by us: the authors' code knows none).

    Drawn and scaled in float64 on the CPU, then moved: a seed gives the same direction on every device and, up to
    rounding, in every precision. A Task is read at its model's present weights without being prepared or run; an
    entered Objective at its centre. Costs no pass over the data.

    Raises MeasurementError for an unknown `normalize` or `ignore`, a seed outside 0 to 2**32 - 1 (torch's generator
    drops the rest: two seeds would be one), weights that are not finite, and a direction of norm zero.
    """
    if normalize is not None and normalize not in get_args(Normalize):
        raise MeasurementError(f"normalize={normalize!r} is not one of 'filter', 'layer', 'weight' or None")
    if ignore is not None and ignore not in get_args(Ignore):
        raise MeasurementError(f"ignore={ignore!r} is neither 'biasbn' nor None")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    if not 0 <= seed < SEEDS:
        raise MeasurementError(f"seed={seed} is not between 0 and 2**32 - 1, which is all that torch's generator tells")
    weights, modules, dtype = _weights(task)
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, torch.Tensor] = {}
    turned: dict[str, int] = {}
    notes: list[str] = []
    scales: list[str] = []
    dead = 0
    for name, w in weights.items():
        d = torch.randn(w.shape, generator=generator, dtype=torch.float64, device="cpu")
        exact = w.detach().to("cpu", torch.float64)
        scale = is_scale(modules.get(name), name, w)
        if scale and w.ndim > 1 and ignore is not None:
            scales.append(name)
        if not scale:
            dim = filter_dim(modules.get(name), name)
            if normalize == "filter":
                if dim != 0:
                    turned[name] = dim
                    notes.append(_along(name, modules[name], dim))
                dead += int((_filter_norms(exact, dim) == 0).sum())
            elif normalize == "layer" and not bool(exact.any()):
                notes.append(f"the weights of {name} are all zero: the direction is zero there")
            d = _scaled(d, exact, normalize, dim)
        elif ignore is not None:
            d = torch.zeros_like(d)
        elif normalize is not None:
            d = exact
        drawn[name] = d.to(w.device, dtype)
    if scales:
        more = f" and {len(scales) - 1} more" if len(scales) > 1 else ""
        notes.append(f"scales of one number for each filter are held, as biases are: {scales[0]}{more}")
    if dead:
        notes.append(f"{dead} filters have weights of norm zero: the direction is zero there")
    kind = f"{normalize}-normalized" if normalize else "not normalized"
    return Direction(
        drawn,
        label=f"random, {kind}, {'biases and norms held, ' if ignore else ''}seed {seed}",
        seed=seed,
        normalize=normalize,
        ignore=ignore,
        notes=notes,
        filter_dims=turned,
    )


def rescaled(task: Task | Objective, direction: Direction, normalize: Normalize) -> Direction:
    """Return a direction whose filters (or layers) have the norms of the weights' own, as a random one's have.

    "filter" and "layer" as in `random_direction`, for all tensors but biases and scales; these are scaled by the mean
    over those tensors of their mean factor (chosen by us: Li et al. say nothing of them). "weight" is refused: it would
    replace the direction by the weights' own. A filter that is zero in the direction stays zero. Costs no pass over the
    data.
    """
    if normalize not in ("filter", "layer"):
        raise MeasurementError(f"normalize={normalize!r} can't rescale a given direction; give 'filter' or 'layer'")
    weights, modules, _ = _weights(task)
    given = dict(zip(weights, direction.tensors(weights), strict=True))
    turned = {}
    notes = list(direction.notes)
    made: dict[str, torch.Tensor] = {}
    factors = []
    for name, w in weights.items():
        d, exact = given[name].to("cpu", torch.float64), w.detach().to("cpu", torch.float64)
        if not is_scale(modules.get(name), name, w):
            dim = filter_dim(modules.get(name), name)
            if normalize == "filter" and dim != 0:
                turned[name] = dim
                notes.append(_along(name, modules[name], dim))
            before, after = (_filter_norms(t, dim) if normalize == "filter" else t.norm() for t in (d, exact))
            factor = torch.where(before > 0, after / before, 0.0)
            factors.append(float(factor.mean()))
            made[name] = d * factor
    typical = sum(factors) / len(factors) if factors else 1.0
    for name, d in given.items():
        made.setdefault(name, d.to("cpu", torch.float64) * typical)
    return Direction(
        {name: made[name].to(given[name].device, given[name].dtype) for name in given},
        label=f"{direction.label}, {normalize}-normalized",
        seed=direction.seed,
        normalize=normalize,
        ignore=direction.ignore,
        notes=dict.fromkeys(notes),
        filter_dims=turned,
    )


def cosine(d1: Direction, d2: Direction) -> float:
    """Return the cosine of the angle between two directions over the same parameters, summed in float64."""
    return _dot(d1, dict(zip(d1, d2.tensors(d1), strict=True))) / (d1.norm * d2.norm)


def orthogonalize(d1: Direction, d2: Direction, *, tol: float = 1e-12, rounds: int = 100) -> Direction:
    """Return d2 made orthogonal to d1, with the norms that its normalization gave it kept.

    Projecting d1 out of d2 changes the norms of its filters (by about cosine^2, relative), and giving them back
    their norms turns it a little towards d1 again. So the two steps alternate, the norms last: norms are exact, and
    the cosine that remains is what the result's notes say. Kept are the norm of each filter ("filter"), of each
    tensor ("layer"), else the norm of the whole. Where no such direction exists (every filter a single number, say),
    the notes tell that `tol` was not reached.

    `tol` on |cosine| and `rounds` are chosen by us: two random directions need 2 to 4 rounds; rounding the result to
    float32 leaves about 1e-8. Costs no pass over the data. Raises MeasurementError where d1 and d2 are parallel.
    """
    before = cosine(d1, d2)
    if abs(before) > PARALLEL:
        raise MeasurementError(
            f"the directions are parallel (cosine {before:.9f}): nothing of the second is left beside the first; draw "
            "it with another seed"
        )
    first = {n: t.double() for n, t in d1.items()}
    square = _dot(first, first)
    norms = {n: _block_norms(d2, n, t.double()) for n, t in d2.items()}
    turned = {n: d2[n].to(first[n].device, torch.float64) for n in first}
    used = 0
    while used < rounds and abs(_dot(first, turned)) > tol * math.sqrt(square) * d2.norm:
        used += 1
        share = _dot(first, turned) / square
        turned = {n: t - share * first[n] for n, t in turned.items()}
        if d2.normalize in ("filter", "layer"):
            for n, t in turned.items():
                present = _block_norms(d2, n, t)
                # A block that vanished has no direction left to scale: it stays zero.
                turned[n] = t * torch.where(present > 0, norms[n].to(t.device) / present, 0.0)
        else:
            factor = d2.norm / _norm(turned.values())
            turned = {n: t * factor for n, t in turned.items()}
    reached = abs(_dot(first, turned)) <= tol * math.sqrt(square) * d2.norm
    turned = {n: turned[n].to(d2[n].device, d2[n].dtype) for n in d2}
    after = _dot(d1, turned) / (d1.norm * _norm(turned.values()))
    return d2._replaced(
        turned,
        f"made orthogonal to {d1.label!r} in {used} rounds, norms kept: cosine {before:.3g} before, {after:.3g} after"
        + ("" if reached else " (no orthogonal direction with these norms was found)"),
    )


def _weights(task: Task | Objective) -> tuple[dict[str, torch.Tensor], dict[str, nn.Module], torch.dtype]:
    """Return (weights by name, their modules, the dtype to measure in) without preparing or running the model."""
    if isinstance(task, Objective):
        if task.entered:
            return dict(zip(task.names, task.center, strict=True)), task.modules_of(), task.dtype
        task = task.task
    if not isinstance(task, Task):
        raise TypeError(f"random_direction needs a landscape.Task, got {type(task).__name__}")
    model = unwrap(task.model)
    weights: dict[str, torch.Tensor] = {n: p.detach() for n, p in trainable(model).items()}
    exact = any(p.dtype == torch.float64 for p in model.parameters())
    return weights, owners(model), task.dtype or (torch.float64 if exact else torch.float32)


def _along(name: str, module: nn.Module, dim: int) -> str:
    return f"filters of {name} ({type(module).__name__}) are taken along dimension {dim}"


def _scaled(d: torch.Tensor, w: torch.Tensor, normalize: Normalize | None, dim: int) -> torch.Tensor:
    if normalize == "filter":
        return d * (_filter_norms(w, dim) / (_filter_norms(d, dim) + EPSILON))
    if normalize == "layer":
        return d * (torch.linalg.vector_norm(w) / torch.linalg.vector_norm(d))
    return d * w if normalize == "weight" else d


def _filter_norms(t: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the norm of each slice along `dim`, shaped to broadcast against `t`."""
    return torch.linalg.vector_norm(t, dim=[i for i in range(t.ndim) if i != dim], keepdim=True)


def _block_norms(direction: Direction, name: str, t: torch.Tensor) -> torch.Tensor:
    """Return the norms that this direction's normalization set in one tensor, shaped to broadcast against it."""
    if direction.normalize == "filter" and t.ndim > 1:
        return _filter_norms(t, direction.filter_dims.get(name, 0))
    return torch.linalg.vector_norm(t)


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    norms = [torch.linalg.vector_norm(t.double()).cpu() for t in tensors]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def _dot(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    return sum(float((a[n].double() * b[n].to(a[n].device, torch.float64)).sum()) for n in a)
