"""Conditions on how two runs differ, as a pipeline writes them: `ece > +0.01 or nll > +5%`. Nothing is executed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import MeasurementError
from .paired import Difference

_TOKEN = re.compile(
    r"\s*(?:(?P<op>>=|<=|>|<)|(?P<amount>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?%?)|(?P<name>[A-Za-z_][\w./-]*))"
)
GRAMMAR = "write NAME > AMOUNT, such as 'ece > +0.01' (a change), 'test_loss > +5%' or 'ece > 0.1' (the second's own)"

Basis = Literal["change", "share", "own"]


@dataclass(frozen=True)
class Sides:
    """A number of both runs with its interval (value, low, high) each, and the difference second minus first.

    `share`: the difference as a share of the first, where it is known better than by dividing the one by the other.
    """

    first: tuple[float, float, float]
    second: tuple[float, float, float]
    difference: Difference
    share: Difference | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a condition holds, and whether it does (or doesn't) over the whole 95% interval: None without one."""

    holds: bool
    sure: bool | None
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clause:
    """`name` `op` `amount`: of the change, of the change as a share of the first's, or of the second's own number."""

    name: str
    op: str
    amount: float
    basis: Basis

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def judge(self, values: Mapping[str, Sides]) -> Verdict:
        """Return whether it holds. Raises MeasurementError for a name that isn't there, or a number that is NaN."""
        name = self.name if self.name in values else f"test_{self.name}"  # held out, where nothing else is said
        if name not in values:
            raise MeasurementError(
                f"{self.name!r} can't be compared: both runs must have it; they share {', '.join(values) or 'nothing'}"
            )
        value, low, high = self._range(values[name])
        if math.isnan(value):
            raise MeasurementError(f"{self.name} is not a number in one of the runs, so {self} can't be judged")
        holds, ends = self._compare(value), (self._compare(low), self._compare(high))
        unknown = math.isnan(low) or math.isnan(high)
        sure = None if unknown else ends == (holds, holds)
        scale, unit = (100.0, "%") if self.basis == "share" else (1.0, "")
        sign = "" if self.basis == "own" else "+"
        bounds = "" if unknown else f" [{scale * low:{sign}.4g}, {scale * high:{sign}.4g}]"
        return Verdict(holds, sure, (f"{name} {scale * value:{sign}.4g}{bounds}{unit}",))

    def _range(self, sides: Sides) -> tuple[float, float, float]:
        if self.basis == "own":
            return sides.second
        d = sides.difference
        if self.basis == "change":
            return d.value, d.low, d.high
        if sides.share is not None:
            return sides.share.value, sides.share.low, sides.share.high
        size = abs(sides.first[0])
        if size == 0:
            raise MeasurementError(f"{self.name} is 0 in the first run: no share of it; give a change without %")
        return d.value / size, d.low / size, d.high / size

    def _compare(self, value: float) -> bool:
        return {
            ">": value > self.amount,
            "<": value < self.amount,
            ">=": value >= self.amount,
            "<=": value <= self.amount,
        }[self.op]

    def __str__(self) -> str:
        scale, unit = (100.0, "%") if self.basis == "share" else (1.0, "")
        return f"{self.name} {self.op} {scale * self.amount:{'' if self.basis == 'own' else '+'}.6g}{unit}"


@dataclass(frozen=True)
class Joined:
    """Conditions joined by `and` or by `or`."""

    word: Literal["and", "or"]
    parts: tuple[Condition, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part.names)

    def judge(self, values: Mapping[str, Sides]) -> Verdict:
        """Return whether it holds; sure where the parts that decide it are."""
        found = [part.judge(values) for part in self.parts]
        holds = all(v.holds for v in found) if self.word == "and" else any(v.holds for v in found)
        # "and" holds surely where every part does, and fails surely where one does; "or" the other way round.
        every = holds if self.word == "and" else not holds
        deciding = [v.sure for v in found if v.holds == holds]
        sure: bool | None = None
        if None not in deciding:
            sure = all(deciding) if every else any(deciding)
        elif not every and True in deciding:
            sure = True
        return Verdict(holds, sure, tuple(t for v in found for t in v.told))

    def __str__(self) -> str:
        return f" {self.word} ".join(map(str, self.parts))


Condition = Clause | Joined


def parse_condition(text: str) -> Condition:
    """Return the condition that a text states: comparisons joined by `and` (binds first) and `or`.

    A signed amount is a change, second minus first, with % as a share of the first; without a sign it is the second's
    own value. A name without its split (perplexity) is the held-out one (test_perplexity) where there is no such
    number. Raises MeasurementError, with the place, for anything else.
    """
    tokens = _tokens(text)
    either = []
    while True:
        both = []
        while True:
            both.append(_clause(text, tokens))
            if not _word(tokens, "and"):
                break
        either.append(both[0] if len(both) == 1 else Joined("and", tuple(both)))
        if not _word(tokens, "or"):
            break
    if tokens:
        raise _wrong(text, tokens[0][2])
    return either[0] if len(either) == 1 else Joined("or", tuple(either))


def _tokens(text: str) -> list[tuple[str, str, int]]:
    found, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise _wrong(text, at)
        kind = str(match.lastgroup)
        found.append((kind, match[kind], match.start(kind)))
        at = match.end()
    return found


def _word(tokens: list[tuple[str, str, int]], word: str) -> bool:
    if tokens and tokens[0][:2] == ("name", word):
        del tokens[0]
        return True
    return False


def _clause(text: str, tokens: list[tuple[str, str, int]]) -> Clause:
    parts = []
    for kind in ("name", "op", "amount"):
        if not tokens or tokens[0][0] != kind or tokens[0][1] in ("and", "or"):
            raise _wrong(text, tokens[0][2] if tokens else len(text))
        parts.append(tokens.pop(0)[1])
    name, op, amount = parts
    signed, share = amount[0] in "+-", amount.endswith("%")
    if share and not signed:
        raise MeasurementError(f"{amount} in {text!r} has no sign: a share is a change, write +{amount}")
    value = float(amount.rstrip("%")) / (100 if share else 1)
    return Clause(name, op, value, "share" if share else "change" if signed else "own")


def _wrong(text: str, at: int) -> MeasurementError:
    where = f"at {text[at:].strip()[:20]!r}" if text[at:].strip() else "at its end"
    return MeasurementError(f"the condition {text!r} can't be read {where}; {GRAMMAR}")
