"""A task's texts: the same in every process for the same task, others where its loss, model or functions are others."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Task
from landscape.differences import differences
from landscape.identity import _installed, describe, hold, text_of

FACTOR = 2.0


def scaled(outputs: torch.Tensor, target: torch.Tensor, by: float = 1.0) -> torch.Tensor:
    return by * FACTOR * nn.functional.cross_entropy(outputs, target)


class Margin:
    def __init__(self, margin: float, names: set[str] | None = None) -> None:
        self.margin, self._names = margin, names or {"one", "two", "three"}

    def __call__(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.multi_margin_loss(outputs, target, margin=self.margin)

    def method(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self(outputs, target)


def within(factor: float) -> Callable[..., torch.Tensor]:
    def loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return factor * scaled(outputs, target)

    return loss


def holding(value: Any) -> Callable[..., torch.Tensor]:
    def loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return outputs.square().mean() + 0 * len(value)

    return loss


def made(loss: Any = None, **settings: Any) -> Task:
    model = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.1), nn.Dropout(0.5), nn.Linear(4, 3))
    return Task(model, loss or nn.CrossEntropyLoss(), (torch.zeros(6, 3), torch.arange(6) % 3), **settings)


PAIRS = {
    "module's setting": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(ignore_index=0)),
    "module's buffer": (nn.CrossEntropyLoss(torch.ones(3)), nn.CrossEntropyLoss(torch.tensor([1.0, 1.0, 2.0]))),
    "closure": (within(1.0), within(2.0)),
    "partial": (functools.partial(scaled, by=1.0), functools.partial(scaled, by=2.0)),
    "cached": (functools.cache(within(1.0)), functools.cache(within(2.0))),
    "attribute": (Margin(1.0), Margin(2.0)),
    "method": (Margin(1.0).method, Margin(2.0).method),
    "code": (lambda o, y: (o * 2).sum(), lambda o, y: (o * 3).sum()),
    "kind": (nn.CrossEntropyLoss(), scaled),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_other_losses_have_other_texts_and_equal_ones_the_same(pair):
    one, other = (describe(made(loss)) for loss in PAIRS[pair])
    assert one == describe(made(PAIRS[pair][0]))
    assert [name for name in one if one[name] != other[name]] == ["loss"]


def test_a_global_that_a_function_reads_belongs_to_it_at_any_depth(monkeypatch):
    losses = (scaled, within(1.0))
    before = [describe(made(loss))["loss"] for loss in losses]
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3.0)
    assert all(describe(made(loss))["loss"] != text for loss, text in zip(losses, before, strict=True))


@pytest.mark.parametrize(
    ("layer", "value"), [(1, nn.LeakyReLU(0.2)), (1, nn.ReLU()), (2, nn.Dropout(0.1)), (3, nn.Linear(4, 3, bias=False))]
)
def test_another_structure_is_another_model(layer, value):
    task = made()
    task.model[layer] = value
    before, now = describe(made()), describe(task)
    assert [name for name in before if before[name] != now[name]] == ["model"]


def test_weights_modes_and_hooks_of_torch_are_no_part_of_the_model():
    task = made()
    before = describe(task)
    with torch.no_grad():
        task.model[0].weight += 1
    task.model.eval()
    assert describe(task) == before


def test_a_function_that_refers_to_the_model_and_to_itself_ends():
    task = made()

    def forward(model: nn.Module, batch: Any) -> Any:
        assert forward is not None
        return task.model(batch[0]), batch[1]

    text = describe(task.replace(forward=forward))["forward"]
    assert text.startswith("forward #")
    assert describe(task.replace(forward=forward))["forward"] == text


def test_texts_are_the_same_in_every_process(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_identity import *; "
    code += "print([describe(made(x)) for x in (scaled, within(2.0), Margin(1.0).method, nn.CrossEntropyLoss())])"
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert "scaled #" in said[0]


NUMBERS = {
    "conjugated": torch.tensor([1 + 2j]).conj(),
    "negated": torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
    "a single element with a stride": torch.arange(8.0).view(4, 2)[:1, 1],
    "none": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).view(2, 3).T,
    "a NumPy array in columns": np.arange(6.0).reshape(2, 3).T,
    "a NumPy table of objects": np.array([(1, "a")], dtype=[("n", int), ("name", object)]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_a_loss_holds_count_however_they_lie_in_memory(name):
    value = NUMBERS[name]
    plain = (
        value.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
        if torch.is_tensor(value)
        else value.copy()
    )
    assert describe(made(holding(value)))["loss"] == describe(made(holding(plain)))["loss"]
    other = torch.full_like(plain, 7) if torch.is_tensor(value) else np.zeros_like(plain)
    assert len(plain) == 0 or describe(made(holding(value)))["loss"] != describe(made(holding(other)))["loss"]


def _holding(value: Any) -> Callable[..., torch.Tensor]:
    """Return a loss that closes over a value."""
    return lambda outputs, target: (outputs - len(value)).square().mean()


def _many(first: Any, changed: Any = None, n: int = 200) -> list[Any]:
    """Return numbers after `first`, of which the last may be another."""
    return [first, *(type(first)(i % 7) for i in range(n)), type(first)(1) if changed is None else changed]


MANY = {
    "floats": (lambda: _many(1.5), lambda: _many(1.5, 1.0000000000000002)),
    "a tuple of floats": (lambda: tuple(_many(1.5)), lambda: tuple(_many(2.5))),
    "the sign of zero": (lambda: _many(0.0, 0.0), lambda: _many(0.0, -0.0)),
    "NaN": (lambda: _many(1.5, math.nan), lambda: _many(1.5, math.inf)),
    "ints": (lambda: _many(3), lambda: _many(3, 2)),
    "ints and floats": (lambda: _many(3), lambda: _many(3.0)),
    "ints and bools": (lambda: _many(1), lambda: [bool(i) for i in _many(1)]),
    "long ints": (lambda: _many(1 << 80), lambda: _many(1 << 80, 1 << 70)),
    "one more": (lambda: _many(1.0), lambda: [*_many(1.0), 1.0]),
    "mixed": (lambda: [*_many(1.0), 1], lambda: [*_many(1.0), True]),
    "texts": (lambda: [str(i) for i in range(99)] + ["12", "3"], lambda: [str(i) for i in range(99)] + ["1", "23"]),
    "a set": (lambda: set(range(200)), lambda: set(range(1, 201))),
    "a set of floats": (lambda: {i / 2 for i in range(200)}, lambda: {i / 2 for i in range(201)}),
    "keys": (lambda: dict.fromkeys(range(99), 1.0), lambda: dict.fromkeys(range(1, 100), 1.0)),
    "values": (lambda: {i: float(i) for i in range(99)}, lambda: {i: float(i // 2) for i in range(99)}),
    "an array of objects": (
        lambda: np.array(_many(1.5), dtype=object),
        lambda: np.array(_many(2.5), dtype=object),
    ),
    "tensors": (
        lambda: {i: torch.full((3,), float(i)) for i in range(99)},
        lambda: {i: torch.full((3,), float(i or 1)) for i in range(99)},
    ),
    "shapes of tensors": (
        lambda: [torch.zeros(2), *(torch.zeros(3) for _ in range(99))],
        lambda: [torch.zeros(3), torch.zeros(2), *(torch.zeros(3) for _ in range(98))],
    ),
    "large tensors": (
        lambda: [torch.arange(5000.0) + i for i in range(70)],
        lambda: [torch.arange(5000.0) + 2 * i for i in range(70)],
    ),
    "one tensor again": (
        lambda: [t for t in (torch.zeros(1),) for _ in range(99)],
        lambda: [torch.zeros(1) for _ in range(99)],
    ),
    "lists after lists": (lambda: [[1], [2]], lambda: [[1, 2]]),
}


@pytest.mark.parametrize("what", list(MANY))
def test_many_numbers_count_one_by_one(what):
    value, other = MANY[what]
    assert text_of(_holding(value())) == text_of(_holding(value()))
    assert text_of(_holding(value())) != text_of(_holding(other()))


def test_tensors_count_by_their_numbers_however_they_lie_in_memory_and_how_many_there_are():
    dense = [torch.arange(6.0).reshape(2, 3) + i for i in range(99)]
    odd = [torch.stack([t, t], dim=-1)[..., 0] for t in dense]
    assert text_of(_holding(dense)) == text_of(_holding(odd))
    conjugated = [
        torch.view_as_complex(torch.randn(4, 2, generator=torch.Generator().manual_seed(i))) for i in range(99)
    ]
    lazily = [t.conj() for t in conjugated]
    assert text_of(_holding(lazily)) == text_of(_holding([t.resolve_conj() for t in lazily]))
    assert text_of(_holding(lazily)) != text_of(_holding(conjugated))


def test_nested_tensors_count_by_their_parts():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype
        a, b, c = (torch.nested.nested_tensor([torch.ones(2), x * torch.ones(3)]) for x in (1.0, 1.0, 2.0))
    texts = [describe(made(holding(v)))["loss"] for v in (a, b, c)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_libraries_are_told_by_names_wherever_a_distribution_keeps_them(tmp_path, monkeypatch, folder):
    file = tmp_path / folder / "a_library.py"
    file.parent.mkdir()
    texts = []
    for factor in (1, 2):
        file.write_text(f"def loss(o, y):\n    return {factor} * (o - y).square().mean()\n")
        spec = importlib.util.spec_from_file_location("a_library", file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "a_library", module)
        exec(file.read_text(), vars(module))
        _installed.cache_clear()
        texts.append(describe(made(module.loss))["loss"])
    _installed.cache_clear()
    assert texts[0] == texts[1]


def test_what_is_held_stays_and_goes_with_the_argument_that_it_describes():
    loss = Margin(1.0)
    task = made(loss)
    hold(task)
    before = describe(task)
    loss.margin = 2.0
    assert describe(task) == before
    assert describe(task.replace(seed=3)) == before
    assert describe(task.replace(loss=loss))["loss"] != before["loss"]
    assert describe(task.replace(loss=loss))["model"] == before["model"]


def test_random_numbers_that_are_fixed_belong_to_their_seed():
    assert describe(made(rng="fixed", seed=1)) != describe(made(rng="fixed", seed=2))
    assert describe(made(seed=1)) == describe(made(seed=2))


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, ["the a (1 before, now 2)"]),
        ({}, {"a": 2}, ["the a (none before, now 2)"]),
        ({"setting": {"k": 1, "m": 0}}, {"setting": {"m": 0}}, ["the setting k (1 before, now none)"]),
        ({"loss": "A() #12"}, {"loss": "B() #34"}, ["the loss (A() before, now B())"]),
        ({"loss": "A() #12"}, {"loss": "A() #34"}, ["the loss (A() with other code or settings)"]),
        ({"weights": "#12"}, {"weights": "#34"}, ["the weights"]),
        ({}, {"weights": "#34"}, ["the weights"]),
    ],
)
def test_differences_in_words(before, now, said):
    assert differences(before, now) == said
