"""The report: one HTML page that holds its own style, script and data, and opens from disk with no network."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..comparison.seeds import seed_groups
from .blocks import Folded, Picture
from .chart import Chart, packed, script_json
from .moments import evenly
from .numbers import count
from .palette import PLOTLY_DASHES, PLOTLY_MARKERS, RUN_COLORS
from .runs import MANY, Run
from .sections import build_sections, by_task

#: As many runs are drawn at first; the others wait in the table (chosen by us: more lines can't be told apart).
DRAWN_AT_FIRST = 6
#: Up to as many runs have a button above each figure; of more, those that are drawn.
CHIPS = MANY
#: As many runs are drawn at once at most, when a filter chooses them (chosen by us: a browser's patience).
MOST_DRAWN = 24
#: Up to as many runs have their numbers in the page bit for bit; of more, in single precision, and that is said. The
#: page of more is packed, too, which browsers before 2023 can't undo.
EXACT_RUNS = 24


def render_report(runs: Sequence[Run], *, title: str | None = None) -> str:
    """Return the page about these runs as HTML; everything that comes from them is escaped."""
    sections = build_sections(runs)
    charts = [c for s in sections for c in _charts(s.blocks)]
    files = resources.files(f"{__package__}.templates")
    many = len(runs) > CHIPS
    shown = with_something(drawn_first(runs), charts)
    page = {
        "runs": [{"name": r.name} for r in runs],
        "shown": shown,
        "hues": len(RUN_COLORS),
        "symbols": PLOTLY_MARKERS,
        "dashes": PLOTLY_DASHES,
        "chips": CHIPS,
        "most": MOST_DRAWN,
    }
    large = len(runs) > EXACT_RUNS
    scripts = [files.joinpath(name).read_text("utf-8") for name in ("tables.js", "report.js")]
    if not large:
        scripts.insert(0, _plotly())
    template = _environment().get_template("page.html.j2")
    return template.render(
        title=title or default_title(runs),
        runs=runs,
        facts=facts(runs),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        going_on=[r.name for r in runs if r.status == "running"],
        sections=sections,
        charts=[(c.id, *_data(c, exact=not large, words=many)) for c in charts],
        plotly=_markup(_packed_plotly()) if large else "",
        page=_markup(script_json(page)),
        style=_markup(files.joinpath("report.css").read_text("utf-8")),
        scripts=[_markup(s) for s in scripts],
        policy=_policy(scripts),
        version=__version__,
        colors=len(RUN_COLORS),
        shown=shown,
        chips=CHIPS,
        markers=len(PLOTLY_MARKERS),
    )


def drawn_first(runs: Sequence[Run]) -> list[int]:
    """Return which runs are drawn at first: one of each setting, evenly over the settings, then their further seeds."""
    groups = seed_groups([r.settings for r in runs], [r.step for r in runs])
    if len(groups) > DRAWN_AT_FIRST:
        return [runs[groups[i][0]].index for i in evenly(len(groups), DRAWN_AT_FIRST)]
    rounds = itertools.zip_longest(*groups)
    return sorted(runs[p].index for p in [p for turn in rounds for p in turn if p is not None][:DRAWN_AT_FIRST])


def with_something(shown: Sequence[int], charts: Sequence[Chart]) -> list[int]:
    """Return the runs, and of each chart that has none of them its first one: no figure is empty at first sight."""
    found = list(shown)
    for chart in charts:
        own = {part.run for part in (*chart.series, *chart.panels) if part.run is not None}
        if own and own.isdisjoint(found):
            found.append(min(own))
    return sorted(found)


def _data(chart: Chart, *, exact: bool, words: bool) -> tuple[str, Any]:
    kind, text = packed(chart.json(exact=exact, words=words))
    return kind, _markup(text)


def default_title(runs: Sequence[Run]) -> str:
    """Return what was compared, in a line."""
    tasks = [short_task(t) for t in by_task(runs) if t]
    of = f" of {tasks[0]}" if len(tasks) == 1 else f" of {len(tasks)} tasks" if tasks else ""
    return f"{runs[0].name}{of}" if len(runs) == 1 else f"{len(runs)} runs{of}"


def short_task(reference: str) -> str:
    """Return what a person calls a task: the function of "path/file.py:name", or the file where that is no name."""
    where, colon, name = reference.rpartition(":")
    stem = Path(where).stem if where.endswith(".py") else where.rpartition(".")[2]
    if not colon:
        return Path(name).stem if name.endswith(".py") else name
    return stem if name in ("task", "make_task", "main") else name


def facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return what stands under the title: how many runs of which task, data, parameters, days, archives."""
    found = [("Runs", count(len(runs)))]
    tasks = [t for t in by_task(runs) if t]
    if tasks:
        found.append(("Task" if len(tasks) == 1 else "Tasks", ", ".join(tasks)))
    samples: dict[str, set[int]] = {}
    parameters: set[int] = set()
    for run in runs:
        measured: Any = run.get("performance")
        if measured is not None:
            parameters.add(int(measured.parameters))
            for split, n in zip(measured.splits, np.ravel(measured.samples), strict=False):
                samples.setdefault(split, set()).add(int(n))
    if samples:
        told = [f"{_range(ns)} {split}" for split, ns in samples.items()]
        found.append(("Data", ", ".join(told) + " samples"))
    if parameters - {0}:
        found.append(("Parameters", _range(parameters - {0})))
    days = sorted({str(r.about["created"])[:10] for r in runs if r.about.get("created")})
    if days:
        found.append(("Measured", days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"))
    archives = dict.fromkeys(r.archive for r in runs if r.archive)
    if archives:
        names = [Path(a).name for a in archives]
        found.append(("Archives" if len(names) > 1 else "Archive", names[0] if len(names) == 1 else count(len(names))))
    return found


def _range(values: set[int]) -> str:
    low, high = min(values), max(values)
    return count(low) if low == high else f"{count(low)} to {count(high)}"


def _charts(blocks: Sequence[Any]) -> list[Chart]:
    found: list[Chart] = []
    for block in blocks:
        if isinstance(block, Picture):
            found.append(block.chart)
        elif isinstance(block, Folded):
            found += _charts(block.blocks)
    return found


@cache
def _plotly() -> str:
    """Return Plotly's script from the installed package, safe inside a script element."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def _packed_plotly() -> str:
    """Return Plotly's script compressed: a page of many runs, whose data are too, is 3 MB smaller by it."""
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs())[1]


@cache
def _environment() -> Any:
    import jinja2

    folder = str(resources.files(f"{__package__}.templates"))
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _markup(text: str) -> Any:
    """Mark text as safe: our own files, Plotly's script, and JSON from `script_json`, nothing else."""
    from markupsafe import Markup

    return Markup(text)


def _policy(scripts: Sequence[str]) -> str:
    """Return a content security policy: these scripts and no others run, and nothing is ever fetched."""
    hashes = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    # Plotly's WebGL traces compile small functions at run time, hence unsafe-eval; its SVG has inline styles.
    return (
        f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )
