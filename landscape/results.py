"""What a measurement returns, and the registry of measurements. No torch, no h5py, no drawing here.

A `Result` is a frozen dataclass that describes itself: each number it holds is a variable with named
dimensions, a unit and, where there is one, the name of its uncertainty. The archive stores any Result
from that description alone, and the report draws it, so that a new measurement is one new file.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from .errors import MeasurementError

Status = Literal["complete", "partial", "failed"]
Level = Literal["pass", "warn", "fail"]
#: What a measurement may need of a task beyond a loss that can be measured.
Need = Literal["labels", "second derivative", "outputs"]

#: Torch-free modules that define Result classes, so that reading an archive never imports torch.
RESULT_MODULES = (
    "landscape.curvature.spectrum",
    "landscape.curvature.estimates",
    "landscape.curvature.thresholds",
    "landscape.curvature.agreement",
    "landscape.surface.slices",
    "landscape.surface.routes",
    "landscape.surface.fields",
    "landscape.alignment.aligned",
    "landscape.calibration.table",
    "landscape.calibration.recalibrated",
    "landscape.calibration.samples",
    "landscape.calibration.coverage",
    "landscape.performance",
    "landscape.class_scores",
    "landscape.training.rates",
)
#: Packages that are searched for `@measurement` functions. A new file in one of them is found by itself.
MEASUREMENT_PACKAGES = ("landscape", "landscape.curvature", "landscape.surface", "landscape.calibration")


@dataclass(frozen=True)
class Cost:
    """What a measurement spent: operator products, passes over the data (a gradient counts 3), seconds."""

    products: int = 0
    passes: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Check:
    """One self-check of a result: its name, how it went, the value found and the limit it is held to.

    `level` is "pass", "warn" or "fail", `message` says in words what was found and, where it is bad, what to do.
    """

    name: str
    level: Level
    message: str
    value: float = math.nan
    limit: float = math.nan


@dataclass(frozen=True)
class Variable:
    """One number or array of a Result, with everything that the archive and the figures need to know."""

    data: np.ndarray
    dims: tuple[str, ...]
    units: str = ""
    doc: str = ""
    coordinate: bool = False
    stderr: str | None = None
    interval: str | None = None
    drawn: bool = True
    identity: bool = False


def array(
    *dims: str,
    units: str = "",
    doc: str = "",
    coordinate: bool = False,
    stderr: str | None = None,
    interval: str | None = None,
    drawn: bool = True,
    identity: bool = False,
    default: Any = dataclasses.MISSING,
) -> Any:
    """Declare a dataclass field as a variable with these dimensions (none: a scalar).

    `coordinate` marks the field that holds the positions along the dimension of the same single name.
    `stderr` and `interval` name the fields that hold the standard error and the (..., 2) interval. `drawn` is False of
    what others are computed from (comparisons in pairs), which no figure shows unasked. `identity` marks shares that
    should be what their coordinate says: figures draw the diagonal.
    """
    metadata = {"variable": (dims, units, doc, coordinate, stderr, interval, drawn, identity)}
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    return field(metadata=metadata, default=default)


def beside(doc: str = "") -> Any:
    """Declare a field that travels with the Result in memory and is never archived (device vectors)."""
    return field(default=None, repr=False, compare=False, metadata={"beside": doc})


_KINDS: dict[str, type[Result]] = {}


@dataclass(frozen=True, kw_only=True)
class Result:
    """Base of everything a measurement returns; subclass with `kind=` (the archive's group) and `section=`.

    `section` is the key under which `summary()` lands in `landscape probe --json`, and what `--only` accepts.
    Fields made with `array` are numbers with dimensions; other fields must survive JSON; `beside` fields stay
    in memory.
    """

    kind: ClassVar[str] = ""
    section: ClassVar[str] = ""

    status: Status = "complete"
    cost: Cost = field(default_factory=Cost)
    settings: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()
    #: How the numbers came about (the draw, the precision, the weights of the batches): to know, not to act on.
    notes: tuple[str, ...] = ()
    along: tuple[Result, ...] | None = beside("further results of the same measurement, archived in their own right")

    def __init_subclass__(cls, kind: str = "", section: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind:
            cls.kind = kind
            cls.section = section or kind
            _KINDS[kind] = cls

    def variables(self) -> dict[str, Variable]:
        """Return every number of this result by name, as a NumPy array with dimensions and units."""
        found = {}
        for f in dataclasses.fields(self):
            if "variable" in f.metadata:
                value = getattr(self, f.name)
                if value is None:
                    continue
                dims, *about = f.metadata["variable"]
                data = np.asarray(value)
                if data.ndim != len(dims):
                    raise MeasurementError(
                        f"{type(self).__name__}.{f.name} has {data.ndim} dimensions, "
                        f"declared {len(dims)} ({', '.join(dims) or 'a scalar'})"
                    )
                found[f.name] = Variable(data, dims, *about)
        return found

    def attributes(self) -> dict[str, Any]:
        """Return every other archived field, ready for JSON."""
        return {
            f.name: _plain(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if "variable" not in f.metadata and "beside" not in f.metadata
        }

    def __str__(self) -> str:
        """Return the summary, warnings and notes, a line each: printing a result is not meant to print its arrays."""
        lines = [f"{type(self).__name__}, {self.status}"]
        if self.status == "failed":
            lines += [f"  {c.name}: {c.message}" for c in self.checks if c.level == "fail"]
        else:
            lines += [f"  {name}: {_shortened(value)}" for name, value in self.summary().items()]
        lines += [f"  warning: {text}" for text in self.warnings] + [f"  note: {text}" for text in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a table of the scalars, and the figure."""
        from .report.notebook import result_html  # draws, so that it loads where a notebook asks

        return result_html(self)

    def summary(self) -> dict[str, Any]:
        """Return what `landscape probe --json` shows; by default every scalar variable."""
        return {k: v.data.item() for k, v in self.variables().items() if not v.dims}

    @classmethod
    def restore(cls, variables: Mapping[str, Variable], attributes: Mapping[str, Any]) -> Result:
        """Rebuild a result from `variables()` and `attributes()`; names that this version lacks are dropped."""
        values: dict[str, Any] = {}
        for f in dataclasses.fields(cls):
            if "variable" in f.metadata:
                found = variables.get(f.name)
                if found is not None:
                    values[f.name] = found.data if found.dims else found.data.item()
                elif _required(f):
                    values[f.name] = None
            elif f.name in attributes:
                values[f.name] = _revive(f.name, attributes[f.name])
            elif _required(f):
                values[f.name] = None
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class StoredResult(Result):
    """A result read from an archive whose class is not known here: the numbers are all there, by name."""

    stored_kind: str = ""
    stored: Mapping[str, Variable] = field(default_factory=dict, metadata={"beside": "variables"})
    extra: Mapping[str, Any] = field(default_factory=dict)

    def variables(self) -> dict[str, Variable]:
        return dict(self.stored)

    def __getattr__(self, name: str) -> Any:
        stored = self.__dict__.get("stored", {})
        extra = self.__dict__.get("extra", {})
        if name in stored:
            v = stored[name]
            return v.data if v.dims else v.data.item()
        if name in extra:
            return extra[name]
        raise AttributeError(f"{self.__dict__.get('stored_kind')!r} result has no {name!r}")


def rebuild(kind: str, variables: Mapping[str, Variable], attributes: Mapping[str, Any]) -> Result:
    """Return the Result of this kind; a `StoredResult` where its class is not known in this process."""
    if kind not in _KINDS:
        for module in RESULT_MODULES:
            importlib.import_module(module)
    if kind in _KINDS:
        return _KINDS[kind].restore(variables, attributes)
    known = {f.name for f in dataclasses.fields(Result)}
    return StoredResult(
        stored_kind=kind,
        stored=dict(variables),
        extra={k: v for k, v in attributes.items() if k not in known},
        **{k: _revive(k, v) for k, v in attributes.items() if k in known},
    )


def kind_of(result: Result) -> str:
    """Return the archive's group name for this result."""
    return result.stored_kind if isinstance(result, StoredResult) else result.kind


# ---------------------------------------------------------------------------------------------- registry

F = TypeVar("F", bound=Callable[..., Result])


@dataclass(frozen=True)
class Option:
    """One setting of a measurement that the command line and the archive know: default, meaning, source.

    With `choices` any other value is refused before anything is measured.
    """

    default: Any
    doc: str
    source: str = "chosen by us"
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """A registered measurement: `run(task, *, seed, progress, **options) -> Result`."""

    name: str
    section: str
    run: Callable[..., Result]
    doc: str
    presets: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Option]
    default: bool
    order: int
    estimate: Callable[..., float | tuple[float, float]] | None
    needs: tuple[Need, ...] = ()
    check: Callable[..., None] | None = None
    most: Callable[..., Mapping[str, int]] | None = None

    def settings(self, preset: str = "standard", **given: Any) -> dict[str, Any]:
        """Return the options to run with: defaults, then the preset's, then the ones given."""
        unknown = set(given) - set(self.options)
        if unknown:
            raise MeasurementError(
                f"measurement {self.name!r} has no option {sorted(unknown)[0]!r}; "
                f"it has {', '.join(self.options) or 'none'}"
            )
        chosen = {k: o.default for k, o in self.options.items()}
        chosen.update(self.presets.get(preset, {}))
        chosen.update(given)
        for key, value in chosen.items():
            choices = self.options[key].choices
            if choices and value not in choices:
                raise MeasurementError(f"{self.name}.{key}={value!r} is not one of {', '.join(map(str, choices))}")
        return chosen


_MEASUREMENTS: dict[str, Measurement] = {}


def measurement(
    name: str,
    *,
    section: str = "",
    preset: Mapping[str, Mapping[str, Any]] | None = None,
    options: Mapping[str, Option] | None = None,
    default: bool = True,
    order: int = 50,
    estimate: Callable[..., float | tuple[float, float]] | None = None,
    needs: Sequence[Need] = (),
    check: Callable[..., None] | None = None,
    most: Callable[..., Mapping[str, int]] | None = None,
) -> Callable[[F], F]:
    """Register a measurement, so that the command line, `list`, the archive and the report know it.

    The function is called as `run(task, *, seed, progress, **options)` and returns a Result. `preset` maps
    quick, standard and thorough to options; `default` says whether `landscape probe` runs it unasked; `order`
    sorts the run. `estimate(**options)` predicts the cost for `--dry-run` in forward passes over the draw (a Hessian
    product counts 6), or the fewest and the most where what is found decides; it is also given `draw_samples` and
    `parameters`. `needs` lets `landscape check` say whether it will work for a task. `check(**options)` raises
    MeasurementError for options that can't be kept, so that they are refused before anything is measured.
    `most(task, **options)` returns for options that count something how much a task has of it, to which a default or
    a preset's is lowered; what the user gave is not.
    """

    def register(run: F) -> F:
        known = _MEASUREMENTS.get(name)
        if known is not None and (known.run.__module__, known.run.__qualname__) != (
            run.__module__,
            run.__qualname__,
        ):
            raise MeasurementError(f"measurement {name!r} is registered twice: rename one of the two")
        doc = (run.__doc__ or "").strip().split("\n")[0]
        _MEASUREMENTS[name] = Measurement(
            *(name, section or name, run, doc, preset or {}, options or {}, default, order, estimate),
            *(tuple(needs), check, most),
        )
        return run

    return register


def measurements() -> dict[str, Measurement]:
    """Return every registered measurement in the order in which `landscape probe` runs them (imports torch)."""
    for package in MEASUREMENT_PACKAGES:
        for module in _modules(package):
            importlib.import_module(module)
    return dict(sorted(_MEASUREMENTS.items(), key=lambda item: (item[1].order, item[0])))


def _modules(package: str) -> Iterator[str]:
    path = importlib.import_module(package).__path__
    for info in pkgutil.iter_modules(path, package + "."):
        if not info.ispkg:
            yield info.name


# ---------------------------------------------------------------------------------------------- plain data


def _shortened(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_shortened(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        shown = ", ".join(_shortened(v) for v in value[:10])
        return f"[{shown}{', ...' if len(value) > 10 else ''}]"
    return str(value)


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _plain(value: Any) -> Any:
    """Return `value` as JSON data; a dataclass becomes a dict, a tuple a list, a NumPy scalar a number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    json.dumps(value)  # a field that would not survive the archive fails here, by name, not at reading
    return value


def _revive(name: str, value: Any) -> Any:
    if name == "cost":
        return Cost(**value)
    if name == "checks":
        # Strict JSON has no NaN: a limit that there is none of comes back as null.
        return tuple(Check(**{**c, **{k: math.nan for k in ("value", "limit") if c.get(k) is None}}) for c in value)
    if isinstance(value, list):
        return tuple(value)
    return value
