"""Strings such as `focal(gamma=2)`, `sam(sgd, rho=0.1)` and `0.9*mse + ramp(0, 0.1)*mae`: parsed, never evaluated.

The text goes through Python's own parser, and only numbers, strings, lists, names, calls, +, -, * and / by a number are
taken out of the tree.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import TrainingError


@dataclass(frozen=True, repr=False)
class Call:
    """A name with settings; `str()` is the same call in one fixed form, for manifests and tables.

    A setting may be a call itself, where `parse_call` was asked for it.
    """

    name: str
    given: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = [repr(v) for v in self.given] + [f"{k}={v!r}" for k, v in self.named.items()]
        return f"{self.name}({', '.join(settings)})" if settings else self.name

    __repr__ = __str__


@dataclass(frozen=True)
class Product:
    """One summand: a coefficient times calls, one of which is a loss, the others schedules."""

    coefficient: float
    calls: tuple[Call, ...]

    def __str__(self) -> str:
        shown = [] if self.coefficient == 1 else [f"{self.coefficient:.12g}"]
        return "*".join([*shown, *map(str, self.calls)])


def parse_call(text: str, *, nested: bool = False) -> Call:
    """Return the one call that a string holds; `nested`: whose settings may be names and calls, too.

    Raises TrainingError for anything else.
    """
    node = _parsed(text)
    if not isinstance(node, ast.Name | ast.Call):
        raise TrainingError(f"{text!r} is no name with settings; expected something like name(setting=1)")
    try:
        return _call(node, _shown(text), nested)
    except RecursionError:
        raise TrainingError(f"{_shown(text)!r} nests too deeply to be read; use fewer terms") from None


def parse_sum(text: str) -> tuple[Product, ...]:
    """Return the summands of a weighted sum, one for a single call. Raises TrainingError for anything else."""
    try:
        return tuple(_product(node, sign, _shown(text)) for node, sign in _summands(_parsed(text), 1.0))
    except RecursionError:
        raise TrainingError(f"{_shown(text)!r} nests too deeply to be read; use fewer terms") from None


def _parsed(text: str) -> ast.expr:
    if not isinstance(text, str) or not text.strip():
        raise TrainingError(f"expected a name with settings, such as name(setting=1), got {text!r}")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or str(error)
        raise TrainingError(
            f"{_shown(text)!r} can't be read ({reason}); expected something like name(setting=1)"
        ) from None


def _shown(text: str) -> str:
    """Return a text as errors quote it."""
    return text if len(text) <= 120 else text[:117] + "..."


def _summands(node: ast.expr, sign: float) -> Iterator[tuple[ast.expr, float]]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        yield from _summands(node.left, sign)
        yield from _summands(node.right, -sign if isinstance(node.op, ast.Sub) else sign)
    else:
        yield node, sign


def _product(node: ast.expr, sign: float, text: str) -> Product:
    coefficient, calls = sign, []
    for factor, inverse in _factors(node, text):
        if isinstance(factor, ast.Name | ast.Call):
            if inverse:
                raise TrainingError(f"{text!r} divides by {ast.unparse(factor)!r}; divide by a number")
            calls.append(_call(factor, text))
            continue
        number = _literal(factor, text)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TrainingError(f"{number!r} in {text!r} is no number: a loss is weighted by a number or a schedule")
        if inverse and not number:
            raise TrainingError(f"{text!r} divides by 0")
        coefficient = coefficient / number if inverse else coefficient * number
    if not calls:
        raise TrainingError(f"the summand {ast.unparse(node)!r} of {text!r} names no loss")
    return Product(coefficient, tuple(calls))


def _factors(node: ast.expr, text: str, inverse: bool = False) -> Iterator[tuple[ast.expr, bool]]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
        yield from _factors(node.left, text, inverse)
        yield from _factors(node.right, text, inverse != isinstance(node.op, ast.Div))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        if isinstance(node.op, ast.USub):
            yield ast.Constant(-1.0), False
        yield from _factors(node.operand, text, inverse)
    else:
        yield node, inverse


def _call(node: ast.Name | ast.Call, text: str, nested: bool = False) -> Call:
    if isinstance(node, ast.Name):
        return Call(node.id)
    if not isinstance(node.func, ast.Name):
        raise TrainingError(f"{ast.unparse(node.func)!r} in {text!r} is no plain name")
    starred = any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords)
    if starred:
        raise TrainingError(f"{text!r} unpacks with *; write every setting out")
    named: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg in named:
            raise TrainingError(f"{text!r} gives {keyword.arg!r} twice")
        named[str(keyword.arg)] = _setting(keyword.value, text, nested)
    return Call(node.func.id, tuple(_setting(a, text, nested) for a in node.args), named)


def _setting(node: ast.expr, text: str, nested: bool) -> Any:
    return _call(node, text, nested) if nested and isinstance(node, ast.Name | ast.Call) else _literal(node, text)


def _literal(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | bool | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _literal(node.operand, text)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.List | ast.Tuple):
        values = [_literal(e, text) for e in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    raise TrainingError(
        f"{ast.unparse(node)!r} in {text!r} is no plain value; expected a number, a 'string', True, False, None or a "
        "list of these"
    )
