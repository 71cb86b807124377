"""Where every number came from, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..blocks import Block, Cell, Column, Folded, Row, Section, Table
from ..measures import setting
from ..numbers import count, given, seconds
from ..runs import Run
from . import section


@section(order=110)
def build(runs: Sequence[Run]) -> Section:
    """Return where each run lies and how it was measured, what each measurement cost, and all settings."""
    blocks: list[Block] = [_origin(runs), _cost(runs), Folded("Versions and platform", (_versions(runs),))]
    blocks.append(Folded("Every setting of every run and measurement", (_settings(runs), _measured(runs))))
    return Section("provenance", "Provenance and cost", blocks, "Provenance")


def _origin(runs: Sequence[Run]) -> Table:
    columns = [
        Column("Run", wide=True),
        Column("archive"),
        Column("checkpoint"),
        Column("fingerprint"),
        Column("step", numeric=True),
        Column("measured", nowrap=True),
        Column("status"),
        Column("device"),
        Column("dtype"),
        Column("preset"),
        Column("seed", numeric=True),
        Column("command", wide=True),
    ]
    rows = []
    for r in runs:
        texts = [
            r.archive,
            r.checkpoint,
            r.fingerprint[:16],
            "" if r.step is None else count(r.step),
            _when(r.about.get("created")),
            r.status,
            r.about.get("device"),
            r.about.get("dtype"),
            r.about.get("preset"),
            r.about.get("seed"),
            r.about.get("command_line"),
        ]
        cells = [Cell(_text(t), hint=r.fingerprint if i == 2 else "") for i, t in enumerate(texts)]
        rows.append(Row([Cell(r.name), *cells], r.index))
    return Table("Where each run's numbers come from.", columns, [("", rows)])


def _cost(runs: Sequence[Run]) -> Table:
    columns = [
        Column("Run", wide=True),
        Column("measurement"),
        Column("products", numeric=True, note="operator-vector products"),
        Column("passes", numeric=True, note="passes over the data; a gradient counts 3"),
        Column("time", numeric=True),
    ]
    rows = []
    for run in runs:
        for kind, result in run.every():
            cost = result.cost
            cells = [
                Cell(run.name, sort=run.name),
                Cell(kind, sort=kind),
                Cell(count(cost.products), sort=float(cost.products)),
                Cell(given(float(f"{cost.passes:.4g}")), sort=float(cost.passes)),
                Cell(seconds(float(cost.seconds)), sort=float(cost.seconds)),
            ]
            rows.append(Row(cells, run.index))
    every = [result.cost for run in runs for _, result in run.every()]
    total = f"What was spent: {count(sum(c.products for c in every))} products, "
    total += f"{count(sum(c.passes for c in every))} passes over the data, "
    total += f"{seconds(float(sum(c.seconds for c in every)))} in all."
    return Table(total, columns, [("", rows)], sortable=len(rows) > 1)


def _versions(runs: Sequence[Run]) -> Table:
    names: dict[str, None] = {}
    told = []
    for run in runs:
        versions = run.about.get("versions")
        found = {k: str(v) for k, v in versions.items()} if isinstance(versions, Mapping) else {}
        for key in ("python", "platform", "source_revision"):
            if run.about.get(key):
                found[key] = str(run.about[key])
        names.update(dict.fromkeys(found))
        told.append(found)
    columns = [Column("Run", wide=True), *(Column(n) for n in names)]
    rows = [
        Row([Cell(r.name), *(Cell(_text(found.get(n))) for n in names)], r.index)
        for r, found in zip(runs, told, strict=True)
    ]
    return Table("Versions of what computed the numbers.", columns, [("", rows)])


def _settings(runs: Sequence[Run]) -> Table:
    names = dict.fromkeys(k for r in runs for k in r.settings)
    columns = [Column("Run", wide=True), *(Column(n) for n in names)]
    rows = [Row([Cell(r.name), *(Cell(setting(r, n)) for n in names)], r.index) for r in runs]
    return Table("Settings of each run.", columns, [("", rows)])


def _measured(runs: Sequence[Run]) -> Table:
    columns = [Column("Run", wide=True), Column("measurement"), Column("settings", wide=True)]
    rows = []
    for run in runs:
        for kind, result in run.every():
            told = "; ".join(f"{k} {_text(v)}" for k, v in result.settings.items())
            rows.append(Row([Cell(run.name), Cell(kind), Cell(told or "–")], run.index))
    return Table("Settings of each measurement.", columns, [("", rows)])


def _when(created: object) -> str:
    """Return "2026-03-14 09:26 UTC" for an ISO time in UTC, anything else as it is."""
    text = str(created or "")
    return f"{text[:10]} {text[11:16]} UTC" if text.endswith("Z") and len(text) >= 17 else text


def _text(value: object) -> str:
    return "–" if value is None or value == "" else str(value)
