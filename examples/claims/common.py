"""What the claims share: the digits, trainings over seeds, and a rule that says whether a claim held.

A claim is a few `Finding`s: one number for each seed, oriented so that the claim says it is above 0 (or within limits
given beforehand). The mean over the seeds with Student's 95% interval decides:

    held            the interval lies wholly on the claimed side (within the limits)
    did not hold    it lies wholly on the other side (outside the limits)
    can't be told   neither
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from landscape import Task
from landscape.comparison.seeds import SeedMean, over_seeds
from landscape.probes import Cell, CellResult, How, Sweep  # pyright: ignore[reportMissingImports]

Verdict = Literal["held", "did not hold", "can't be told"]
Data = tuple[Tensor, Tensor]
SIGN_RULE = "held where the 95% interval over seeds lies wholly on the claimed side, did not hold where on the other"


@dataclass(frozen=True)
class Finding:
    """One measured number of a claim: what was expected, a value for each seed, and the limits of the claim.

    `log` says that the values are logarithms of a ratio, and are shown as one. A finding with `decides=False` is told
    beside the others, and has no part in the claim's verdict.
    """

    expected: str
    values: Sequence[float] | np.ndarray
    above: float = 0.0
    below: float = math.inf
    log: bool = False
    units: str = ""
    decides: bool = True

    @property
    def mean(self) -> SeedMean:
        return over_seeds(self.values)

    @property
    def verdict(self) -> Verdict:
        m = self.mean
        if m.seeds < 2 or not math.isfinite(m.low):
            return "can't be told"
        if self.above < m.low and m.high < self.below:
            return "held"
        return "did not hold" if m.high < self.above or m.low > self.below else "can't be told"

    @property
    def came(self) -> str:
        m = self.mean
        missing = len(self.values) - m.seeds
        said = f"{interval(m, self.log)}{f' {self.units}' if self.units else ''}, {m.seeds} seeds"
        return said + (f" ({missing} without a number)" if missing else "")


@dataclass(frozen=True)
class Claim:
    """A claim as it was measured here. `beside` are lines about what the findings are made of."""

    name: str
    says: str
    source: str
    setting: str
    findings: Sequence[Finding]
    beside: Sequence[str] = ()
    rule: str = SIGN_RULE
    seconds: float = field(default=math.nan, compare=False)

    @property
    def verdict(self) -> Verdict:
        """Held where every finding that decides did; did not hold where one of them didn't."""
        deciding = [f.verdict for f in self.findings if f.decides]
        if "did not hold" in deciding:
            return "did not hold"
        return "held" if all(v == "held" for v in deciding) else "can't be told"

    def __str__(self) -> str:
        lines = [f"{self.says}", f"  source   {self.source}", f"  setting  {self.setting}", f"  rule     {self.rule}"]
        lines += [f"  beside   {line}" for line in self.beside]
        for f in self.findings:
            aside = "" if f.decides else "  (told beside; does not decide)"
            lines += [f"  expected {f.expected}{aside}", f"  came     {f.came}", f"  here     {f.verdict}"]
        return "\n".join([*lines, f"  => {self.verdict}  ({self.seconds:.0f} s of processor time)"])


class Measure(Protocol):
    """What each script defines: the claim, measured over seeds; `figures` is a folder to draw into."""

    def __call__(self, seeds: Sequence[int], quick: bool, figures: Path | None) -> Claim: ...


def interval(m: SeedMean, log: bool = False) -> str:
    """Return a mean with its interval; that of logarithms as ratios."""
    numbers = (m.mean, m.low, m.high)
    if log:
        mean, low, high = (math.exp(v) if v < 700 else math.inf for v in numbers)
        return f"x {mean:.3g} [{low:.3g}, {high:.3g}]"
    return "{:.3g} [{:.3g}, {:.3g}]".format(*numbers)


def over(name: str, values: Sequence[float] | np.ndarray) -> str:
    """Return a line about one setting: its mean and interval over the seeds."""
    return f"{name}: {interval(over_seeds(values))}"


def timed(measure: Measure, seeds: Sequence[int], quick: bool = False, figures: Path | None = None) -> Claim:
    """Measure a claim on one thread, and say what processor time it took."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.process_time()
    try:
        claim = measure(seeds, quick, figures)
    finally:
        torch.set_num_threads(threads)
    return replace(claim, seconds=time.process_time() - began)


def main(measure: Measure, seeds: int) -> None:
    """The command line of a script: `seeds` is its default number of them."""
    parser = argparse.ArgumentParser(description="Measure this claim, over seeds.")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"how many (default {seeds})")
    parser.add_argument("--quick", action="store_true", help="two seeds and little data: seconds, and no evidence")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw into this folder")
    asked = parser.parse_args()
    print(timed(measure, range(2 if asked.quick else asked.seeds), asked.quick, asked.figures))


def digits(seed: int, train: int, size: int = 8) -> tuple[Data, Data]:
    """Return scikit-learn's 1,797 digits as ((X, y) of `train` of them, (X, y) of the rest), split by the seed.

    X (n, 1, size, size), pixels with mean 0 and deviation 1 over all images, enlarged beyond 8 by interpolation.
    """
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)
    if size != 8:
        x = nn.functional.interpolate(x, (size, size), mode="bilinear", align_corners=False)
    x, y = (x - x.mean()) / x.std(), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    first, rest = order[:train], order[train:]
    return (x[first].contiguous(), y[first]), (x[rest].contiguous(), y[rest])


def perceptron(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return an untrained net of dense layers on 8 x 8 images, with ten outputs."""
    sizes = (64, *widths)
    hidden = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), activation())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], 10))


def trained(
    task: Callable[..., Task],
    read: Callable[[CellResult], Any],
    *,
    cells: Sequence[Cell] | None = None,
    how: How | None = None,
    **lists: Any,
) -> dict[Any, list[Any]]:
    """Train a sweep in a folder that is removed afterwards, and return what `read` makes of each cell, seeds in order.

    Keys are what the cells differ in beside the seed: its value, or a tuple of them. Cells of one seed begin with the
    same weights and see the data in the same order.
    """
    found: dict[Any, list[Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        collected = Sweep(task, Path(folder) / "runs", cells=cells, how=how, **lists).run()
        axes = [{k: v for k, v in r.cell.axes.items() if k != "seed"} for r in collected.results]
        differing = [k for k in axes[0] if len({a.get(k) for a in axes}) > 1]
        for own, result in zip(axes, collected.results, strict=True):
            key = tuple(own[k] for k in differing)
            found.setdefault(key[0] if len(key) == 1 else key, []).append(read(result))
    return found


def column(rows: Sequence[dict[str, float]], name: str) -> np.ndarray:
    """Return one number of every seed, NaN where it was not measured."""
    return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)


def figure_path(figures: Path, name: str) -> Path:
    """Return where a figure goes; the folder is made."""
    figures.mkdir(parents=True, exist_ok=True)
    return figures / f"{name}.png"
