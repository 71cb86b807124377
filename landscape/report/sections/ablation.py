"""Ablation: what each setting of the sweep does to accuracy, gap, calibration and sharpness, over seeds."""

from __future__ import annotations

from collections.abc import Sequence

from ...comparison.ablation import FEWEST_SEEDS, Effect
from ...counted import counted
from ..blocks import Block, Cell, Column, Folded, Notes, Picture, Row, Section, Table, Text
from ..effects import Response, effects, name_of, rests_on
from ..figures.effects import effect_panels
from ..numbers import number
from ..runs import Run
from . import by_task, section


@section(order=82)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the main effects and interactions of the settings within each task that has several."""
    blocks: list[Block] = []
    groups = by_task(runs)
    for task, members in groups.items():
        found, left_out = effects(members)
        if found:
            where = f" (task {task or 'not named'})" if len(groups) > 1 else ""
            blocks += _of_task(found, left_out, where, with_chart=len(groups) == 1)
    if not blocks:
        return None
    return Section("ablation", "What each setting does", [Text(_READING), *blocks], "Settings")


_READING = (
    "A main effect is the difference between two values of a setting, averaged with equal weights over the others; an "
    "interaction is how far that difference changes when another setting changes. Intervals are at 95%, by least "
    "squares over seeds: in a full grid the paired t test within seeds. They say what these settings did in this "
    "sweep; a value that was not tried, a learning rate tuned for one optimizer, and another task are outside of it."
)


def _of_task(found: Sequence[Response], left_out: Sequence[str], where: str, *, with_chart: bool) -> list[Block]:
    blocks: list[Block] = []
    chart = effect_panels(found) if with_chart else None
    if chart:
        blocks.append(Picture(chart))
    blocks.append(_table(f"Main effects{where}.", found, [r.found.main for r in found]))
    if any(r.found.interactions for r in found):
        table = _table(f"Pairwise interactions{where}.", found, [r.found.interactions for r in found])
        blocks.append(Folded(f"Pairwise interactions{where}", (table,)))
    blocks.append(Notes(_notes(found, left_out)))
    return blocks


def _table(caption: str, found: Sequence[Response], effects_of: Sequence[Sequence[Effect]]) -> Table:
    columns = [Column("Change of setting", wide=True)]
    columns += [
        Column(
            r.title,
            "Factor on" if r.ratio else "Change of",
            numeric=True,
            note=f"{r.measure.note}; {rests_on(r)}".lstrip("; "),
        )
        for r in found
    ]
    by_name = [{(e.factors, e.levels): e for e in effects} for effects in effects_of]
    keys = dict.fromkeys(key for effects in by_name for key in effects)
    rows = []
    for key in keys:
        told = [(r, effects.get(key)) for r, effects in zip(found, by_name, strict=True)]
        rows.append(Row([_name(next(e for _, e in told if e is not None)), *(_cell(r, e) for r, e in told)]))
    return Table(caption, columns, [("", rows)], sortable=len(rows) > 1)


def _name(effect: Effect) -> Cell:
    name = name_of(effect)
    if len(effect.factors) == 2:
        against = ", ".join(f"{first}" for first, _ in effect.levels)
        return Cell(" × ".join(other for _, other in effect.levels), f"against {against}", sort=name, hint=name)
    (first, other), (factor,) = effect.levels[0], effect.factors
    return Cell(other, f"{factor}, instead of {first}", sort=name, hint=name)


def _cell(response: Response, effect: Effect | None) -> Cell:
    if effect is None:
        return Cell("–", hint="these runs can't tell it", quiet=True)
    text, bounds = response.text(effect)
    few = effect.low != effect.low
    hint = "too few seeds for an interval: nothing is claimed" if few else f"{number(effect.df, 2)} degrees of freedom"
    return Cell(text, "too few seeds" if few else bounds, sort=effect.value, hint=hint, quiet=few)


def _notes(found: Sequence[Response], left_out: Sequence[str]) -> list[tuple[str, str]]:
    notes = []
    known = [(r, e) for r in found for e in r.found.effects if e.low == e.low]
    if not known:
        least = min(r.found.independent for r in found)
        notes.append(
            (
                "warn",
                f"These effects rest on {counted(least, 'seed')}: no interval is given below "
                f"{FEWEST_SEEDS}, and nothing can be claimed. Train every setting with more seeds.",
            )
        )
    else:
        claimed = sum(e.claimed for _, e in known)
        chance = 0.05 * len(known)
        notes.append(
            (
                "info",
                f"{claimed} of {len(known)} intervals don't hold “no effect”; about {number(chance, 2)} would by "
                "chance alone, if no setting did anything. They are not corrected for their number.",
            )
        )
    ragged = [r.title for r in found if not r.found.balanced]
    if ragged:
        which = "" if len(ragged) == len(found) else f" for {', '.join(ragged)}"
        notes.append(
            (
                "info",
                f"The grid isn't full{which} (a seed lacks a combination): effects are estimated by least squares, and "
                "three-way interactions count as noise.",
            )
        )
    notes += [("info", f"Not told apart: {text}.") for text in left_out]
    return notes
