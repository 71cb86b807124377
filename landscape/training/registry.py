"""Things by name: what there is, with parameters, defaults and sources, and how one is made from a name or a string."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..errors import TrainingError
from ..results import Option
from .expressions import Call, parse_call

#: What a parameter means, where its default comes from and, if not every number will do, in which interval it lies; the
#: default itself is read off the signature.
About = Mapping[str, "tuple[str, str] | tuple[str, str, str] | str"]


@dataclass(frozen=True)
class Parameter(Option):
    """A parameter, and the interval that its numbers lie in, such as "[0, inf)"; "" where every number will do."""

    limits: str = ""

    def takes(self, value: Any) -> bool:
        """Return whether a number lies in the interval; what is no number is for its user to judge."""
        if not self.limits or isinstance(value, bool) or not isinstance(value, int | float):
            return True
        low, high = (float(end) for end in self.limits[1:-1].split(","))
        above = value >= low if self.limits[0] == "[" else value > low
        return above and (value <= high if self.limits[-1] == "]" else value < high)


class _Required:
    """Stands where a parameter has no default."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()


@dataclass(frozen=True)
class Entry:
    """One thing of a registry: `make(**settings)` makes it; `options` are its parameters.

    `source` is the paper (or the documentation) it is taken from, `torch` PyTorch's class where it is handed out.
    `base` names the parameter that is a thing of the same registry itself, where there is one.
    """

    name: str
    make: Callable[..., Any] = field(repr=False)
    doc: str
    source: str
    options: Mapping[str, Parameter]
    torch: str = ""
    base: str = field(default="", kw_only=True)

    def settings(self, *given: Any, **named: Any) -> dict[str, Any]:
        """Return every parameter with its value: the defaults, then those given in order, then by name.

        Raises TrainingError for a parameter that there is none of, one given twice, one that is missing, and a number
        that can't be.
        """
        names = tuple(self.options)
        if len(given) > len(names):
            raise TrainingError(f"{self.name} takes {len(names)} parameters ({self._have()}), got {len(given)}")
        unknown = next((n for n in named if n not in self.options), None)
        if unknown is not None:
            raise TrainingError(f"{self.name} has no parameter {unknown!r}; it has {self._have()}")
        twice = next((n for n in names[: len(given)] if n in named), None)
        if twice is not None:
            raise TrainingError(f"{self.name} got its parameter {twice!r} twice, by place and by name")
        chosen = {n: o.default for n, o in self.options.items()}
        chosen.update(zip(names, given, strict=False))
        chosen.update(named)
        missing = next((n for n, v in chosen.items() if v is REQUIRED), None)
        if missing is not None:
            doc = self.options[missing].doc
            raise TrainingError(f"{self.name} needs its parameter {missing!r}{f' ({doc})' if doc else ''}")
        for n, value in chosen.items():
            if isinstance(value, Call) and n != self.base:
                raise TrainingError(
                    f"{n}={value} of {self.name} is no plain value; expected a number, a 'string', True, False, None "
                    "or a list of these"
                )
            if not self.options[n].takes(value):
                raise TrainingError(f"{n}={value!r} of {self.name} must lie in {self.options[n].limits}")
        return chosen

    def build(self, *given: Any, **named: Any) -> Any:
        """Return the thing with these settings. Raises TrainingError for settings that it can't have."""
        settings = self.settings(*given, **named)
        try:
            return self.make(**settings)
        except TrainingError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(f"{self.name} can't be made with these settings: {error}") from error

    def _have(self) -> str:
        return ", ".join(f"{n}={o.default!r}" for n, o in self.options.items()) or "none"


E = TypeVar("E", bound=Entry)
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[E]):
    """Entries by name; those that come with the package are loaded from `package` on first use."""

    def __init__(self, what: str, package: str) -> None:
        self.what = what
        self._package = package
        self._entries: dict[str, E] = {}
        self._origins: dict[str, tuple[str, str]] = {}
        self._loaded = False

    def __repr__(self) -> str:
        return f"<the {self.what} registry: {', '.join(self.names())}>"

    def names(self) -> tuple[str, ...]:
        """Return every registered name, sorted."""
        return tuple(sorted(self.entries()))

    def entries(self) -> dict[str, E]:
        """Return every entry by name, in the order in which they were registered."""
        if not self._loaded:
            self._loaded = True  # before the imports: what they register may look others up
            try:
                package = importlib.import_module(self._package)
                for info in pkgutil.iter_modules(getattr(package, "__path__", ()), self._package + "."):
                    importlib.import_module(info.name)
            except BaseException:
                self._loaded = False
                raise
        return dict(self._entries)

    def entry(self, name: str) -> E:
        """Return one entry. Raises TrainingError for an unknown name, with the nearest ones."""
        found = self.entries()
        if name not in found:
            raise TrainingError(f"there is no {self.what} {name!r}{nearest(name, found)}")
        return found[name]

    def get(self, name: str, /, *given: Any, **settings: Any) -> Any:
        """Return the thing of this name with these settings: `losses.get("focal", gamma=2.0)`.

        Raises TrainingError for an unknown name (the nearest ones are offered) or parameter.
        """
        return self.entry(name).build(*given, **settings)

    def build(self, text: str) -> Any:
        """Return what a string describes: `focal(gamma=2)`. Nothing in it is evaluated.

        Raises TrainingError for a string that is no such call, an unknown name or parameter.
        """
        return self.make(parse_call(text))

    def make(self, call: Call) -> Any:
        """Return what a parsed call describes."""
        return self.entry(call.name).build(*call.given, **call.named)

    def __contains__(self, name: object) -> bool:
        return name in self.entries()

    def add(self, entry: E, origin: Callable[..., Any]) -> None:
        """Register an entry made of `origin`; the same function again (a reloaded file) replaces it."""
        if not entry.name.isidentifier():
            raise TrainingError(f"{entry.name!r} can't be the name of a {self.what}: use letters, digits and _")
        if not origin.__module__.startswith((self._package, "torch.")):
            self.entries()  # somebody's own: a name that comes with the package is taken
        known = self._entries.get(entry.name)
        where = (origin.__module__, origin.__qualname__)
        if known is not None and self._origins[entry.name] != where:
            raise TrainingError(f"{self.what} {entry.name!r} is registered twice: rename one of the two")
        self._origins[entry.name] = where
        self._entries[entry.name] = entry


def nearest(name: str, names: Any) -> str:
    """Return "; did you mean ...?" with the nearest names, or all of them where none is near."""
    close = difflib.get_close_matches(name.lower(), list(names), n=3, cutoff=0.5)
    close += [n for n in sorted(names) if name.lower() in n and n not in close][:3]
    return f"; did you mean {', '.join(close)}?" if close else f"; there are {', '.join(sorted(names))}"


def options_of(make: Callable[..., Any], about: About | None, skip: int = 0) -> dict[str, Parameter]:
    """Return the parameters of a function or class as options, its first `skip` ones left out.

    A class of somebody else's (PyTorch's) shows only the parameters named in `about`. A parameter without a word of
    its own says that its default is the signature's.
    """
    about = about or {}
    parameters = list(inspect.signature(make).parameters.values())[skip:]
    foreign = isinstance(make, type) and make.__module__.startswith("torch.")
    found = {}
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or (foreign and p.name not in about):
            continue
        said = about.get(p.name, ("", "PyTorch's default" if foreign else "the signature's default"))
        doc, source, limits, *_ = (said, "chosen by us", "") if isinstance(said, str) else (*said, "")
        found[p.name] = Parameter(REQUIRED if p.default is p.empty else p.default, doc, source, limits=limits)
    unknown = set(about) - set(found)
    if unknown:
        raise TrainingError(f"{make.__name__} has no parameter {sorted(unknown)[0]!r}; it has {', '.join(found)}")
    return found


def first_line_of(thing: Any) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(thing) or "").strip().split("\n")[0]
