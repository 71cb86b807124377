"""An archive in words, for `landscape show`: what was measured, how sure it is, what is wrong with it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import numpy as np

from ..counted import counted
from ..errors import ArchiveError
from ..results import Result, Variable
from .reader import Archive, Entry
from .schema import SALVAGED, Subject, lost_by_damage, plain
from .training import WORTH_A_SHARE, training_facts

#: Columns, so that the text stands in an 80x24 terminal's wider sister and in an issue. Chosen by us.
WIDTH = 100
#: Names that a loop logged are told up to this many. Chosen by us.
_MOST_LOGGED = 6
#: Arrays up to this length are written out; longer ones by their range. Chosen by us.
WRITTEN_OUT = 6


def describe_archive(archive: Archive) -> str:
    """Return a plain text of at most 100 columns: subjects, results with uncertainties, checks, provenance.

    Control characters in an archive's texts are shown as "?", so that a name cannot drive the terminal. A
    result that cannot be read is shown with its error, and the others stand.
    """
    facts = training_facts(archive)
    lines = [*_head(archive, facts)]
    if facts:
        said = {lost_by_damage(line.removeprefix("lost: ")) for line in salvaged(archive)}
        lines += ["", *_training({**facts, "told": [e for e in facts["told"] if e["message"] not in said]})]
    for number, subject in enumerate(archive.subjects, 1):
        lines += ["", *_subject(number, subject)]
        for entry in archive.select(subject=subject):
            lines += ["", *_entry(entry)]
    if not archive.entries and not facts:
        lines += ["", "no results"]
    return "\n".join(lines)


def archive_json(archive: Archive) -> dict[str, Any]:
    """Return the archive as one object for `landscape show --json`: subjects, each with its results' summaries.

    "training" is what `training.training_facts` returns, whose keys are listed there; null without a record of one.
    Strict JSON data: NaN and the infinities are None, and "warnings" says in which results that happened.
    """
    warnings: list[str] = []
    subjects = []
    for subject in archive.subjects:
        results = []
        for entry in archive.select(subject=subject):
            shown = _entry_json(entry)
            replaced = _finite([shown.get("summary"), shown.get("settings")])[1]
            if replaced:
                left = counted(replaced, "number that is not finite is", "numbers that are not finite are")
                warnings.append(f"{entry.group}: {left} null")
            results.append(shown)
        subjects.append({**subject.to_dict(), "label": subject.label, "results": results})
    head = {
        "schema": 1,
        "archive": str(archive.path),
        "status": archive.status,
        "attributes": plain(archive.attributes),
        "run": plain(archive.run),
        "appended": plain(list(archive.appended)),
        "training": plain(training_facts(archive)),
        "subjects": subjects,
        "warnings": warnings,
    }
    return _finite(head)[0]


# ---------------------------------------------------------------------------------------------- parts


def _head(archive: Archive, facts: Mapping[str, Any] | None) -> Iterator[str]:
    about = archive.attributes
    state = {"running": "running, or killed before its end", "": "of unknown status"}.get(
        archive.status, archive.status
    )
    if facts:
        state = facts["status"]
    count = len(archive.entries)
    yield from _wrapped(
        f"{archive.path}: {state}, {count} result{'s' * (count != 1)}, format {about.get('format_version', '?')}"
    )
    for line in salvaged(archive):
        yield from _field("salvaged", line)
    rows = sum(len(r) for r in archive.unfinished.values())
    if rows:
        yield from _field(
            "unfinished", f"{counted(rows, 'point')} of a surface; landscape probe --resume goes on there"
        )
    yield from _provenance(about)
    if archive.run:
        yield from _field("settings", _pairs(archive.run))
    for number, later in enumerate(archive.appended, 1):
        yield from _field(f"appended {number}", f"{later.get('created', '?')}, {later.get('status', '?')}")
        yield from _field("", str(later.get("command_line", "")))
        differing = {
            k: v for k, v in (later.get("versions") or {}).items() if (about.get("versions") or {}).get(k) != v
        }
        if differing:
            yield from _field("", f"other versions: {_pairs(differing)}")


def salvaged(archive: Archive) -> list[str]:
    """Return what is to be said of an archive that `landscape repair` made of a damaged one; nothing of others."""
    found = archive.attributes.get(SALVAGED)
    if not isinstance(found, Mapping):
        return []
    proven = "" if found.get("proven") else "; its checksums were gone, so that nothing proves the numbers"
    return [f"salvaged from {found.get('from')}, which was damaged{proven}", *(f"lost: {x}" for x in found["lost"])]


def _training(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"training {facts['status']}"
    rows = told(facts)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        yield from _wrapped(f"{name:<{width}}  {text}", "  ", " " * (width + 4))
    for event in facts["told"]:
        yield from _wrapped(f"step {event['step']:,}: {event['kind'].replace('_', ' ')}: {event['message']}", "  ")
    counted = [f"{count:,} {kind.replace('_', ' ')}" for kind, count in facts["events"].items()]
    yield from _field("events", ", ".join(counted))
    rows = [f"{name} {count:,}" for name, count in facts["quantities"].items()]
    yield from _field("rows", ", ".join(rows))


def told(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what `training_facts` found as (name, words), for what was recorded."""
    length = [counted(facts["steps"], "step")]
    length += [counted(facts["epochs"], "epoch")] if facts["epochs"] is not None else []
    length += [f"{number(facts['seconds'])} s"] if facts["seconds"] is not None else []
    if facts["recording_share"] is not None:
        short = (facts["seconds"] or 0.0) < WORTH_A_SHARE
        spent = f"{number(facts['seconds_recording'])} s" if short else f"{100 * facts['recording_share']:.1f}%"
        length.append(f"{spent} of it spent recording")
    rows = [("length", ", ".join(length))]
    if loss := facts["loss"]:
        rows.append(("loss", f"{number(loss['first'])} -> {number(loss['last'])}, means of the first and last tenth"))
    if logged := facts["logged"]:
        each = [
            f"{name} {number(e['first'])} -> {number(e['last'])}" for name, e in list(logged.items())[:_MOST_LOGGED]
        ]
        more = f", {len(logged) - len(each):,} more" if len(logged) > len(each) else ""
        rows.append(("logged", f"{', '.join(each)}{more}; means of the first and last tenth"))
    if norm := facts["gradient_norm"]:
        rows.append(("gradient norm", _norm(norm)))
    rows += [(f"gradient norm {name}", _norm(norm)) for name, norm in (facts["gradient_norms"] or {}).items()]
    if bend := facts["curvature"]:
        edge = f", unstable above {number(bend['threshold'])}" if bend["threshold"] is not None else ""
        # A schedule that ends at 0 makes any curvature stable: a large threshold is no praise then.
        edge += (
            f" at learning rate {number(bend['learning_rate'])}" if edge and bend["learning_rate"] is not None else ""
        )
        of = " of the preconditioned Hessian" if bend["operator"] == "preconditioned" else ""
        rows.append(("lambda_max", f"{number(bend['lambda_max'])}{of} at step {bend['step']:,}{edge}"))
    if left := facts["left_out"]:
        each = [f"{name} {n['left_out']:,} of {n['moments']:,} times" for name, n in left.items()]
        rows.append(("left out", f"{', '.join(each)}, to keep within its budget; raise budget= for more"))
    if held := facts["calibration"]:
        rows.append(("calibration", ", ".join(f"{name} {number(value)}" for name, value in held.items())))
    if files := facts["checkpoints"]:
        rows.append(("checkpoints", f"{len(files):,}, the last one {files[-1]}"))
    if facts["lost_rows"]:
        rows.append(("lost", f"{counted(facts['lost_rows'], 'row')} could not be written"))
    if facts["superseded_rows"]:
        rows.append(
            ("superseded", f"{counted(facts['superseded_rows'], 'row')} that a resumed run has gone over again")
        )
    if facts["status"] == "killed":
        torn = f", {counted(facts['torn_bytes'], 'byte')} torn" if facts["torn_bytes"] else ""
        rows.append(("killed", f"nobody writes it any more{torn}; landscape repair puts its rows into the archive"))
    return rows


def _norm(norm: Mapping[str, Any]) -> str:
    last, largest, clipped = number(norm["last"]), number(norm["largest"]), f"{norm['clipped']:,} of {norm['steps']:,}"
    until = norm["finite_until"]
    last += " at the end" if until is None else f" at step {until:,}, not finite after it"
    if norm["unclipped"] is not None and norm["clipped"]:
        return f"{last}; clipped at {clipped} steps, from {number(norm['unclipped'])} at most to {largest}"
    text = f"{last}, at most {largest} at step {norm['step']:,}"
    if norm["unclipped"] is not None:
        return f"{text}, never clipped"
    if norm["clipped"]:
        seems = "as it seems (rec.clip_grad_norm_ records both sides)"
        return f"{last}; clipped to {largest} at {clipped} steps, {seems}"
    return text


def _provenance(about: Mapping[str, Any]) -> Iterator[str]:
    created = [f"{about['created']}"] if about.get("created") else []
    created += [f"{name} {about[name]}" for name in ("device", "seed") if about.get(name) not in (None, "")]
    yield from _field("created", ", ".join(created))
    yield from _field("command", str(about.get("command_line", "")))
    yield from _field("source", str(about.get("source_revision", "")))
    yield from _field("versions", _pairs(about.get("versions") or {}))
    yield from _field("platform", str(about.get("platform", "")))


def _subject(number: int, subject: Subject) -> Iterator[str]:
    title = f"[{number}] {subject.label}"
    yield from _wrapped(title)
    facts = {
        "checkpoint": subject.checkpoint,
        "fingerprint": subject.fingerprint,
        "task": subject.task,
        "step": subject.step,
        "epoch": subject.epoch,
        **subject.facts,
    }
    yield from _wrapped(_pairs({k: v for k, v in facts.items() if v not in (None, "")}), "    ")


def _entry(entry: Entry) -> Iterator[str]:
    try:
        result = entry.result
    except ArchiveError as error:
        yield from _wrapped(f"{entry.kind} {entry.id}  cannot be read: {error}", "    ", "      ")
        return
    cost = [f"{result.cost.products:,} products"] if result.cost.products else []
    cost += [f"{result.cost.passes:,.4g} passes"] if result.cost.passes else []
    cost += [f"{result.cost.seconds:,.3g} s"] if result.cost.seconds else []
    yield from _wrapped(f"{entry.kind} {entry.id}  {', '.join([result.status, *cost])}", "    ", "      ")
    about = {k: v for k, v in result.attributes().items() if isinstance(v, str) and v and k != "status"}
    if about:
        yield from _wrapped(_pairs(about), "      ", "        ")
    rows = list(_rows(result))
    column = min(40, max((len(name) for name, _ in rows), default=0))
    for name, text in rows:
        yield from _wrapped(f"{printable(name):<{column}}  {text}", "      ", " " * (8 + column))
    shown = {k: v for k, v in result.settings.items() if v is not None}
    if shown:
        yield from _wrapped(f"settings: {_pairs(shown)}", "      ", "        ")
    for check in result.checks:
        if check.level != "pass":
            yield from _wrapped(f"{check.level.upper()}  {check.name}: {check.message}", "      ", "        ")
    passed = sum(check.level == "pass" for check in result.checks)
    if passed:
        yield f"      {passed} of {len(result.checks)} checks pass"
    for warning in result.warnings:
        yield from _wrapped(f"warning: {warning}", "      ", "        ")
    for note in result.notes:
        yield from _wrapped(f"note: {note}", "      ", "        ")


def _rows(result: Result) -> Iterator[tuple[str, str]]:
    """Return a name and a text for each variable that is not the uncertainty of another one."""
    variables = result.variables()
    beside = {name for v in variables.values() for name in (v.stderr, v.interval) if name}
    for name, variable in variables.items():
        if name in beside or variable.data.size == 0 or (variable.coordinate and variable.dims == (name,)):
            continue
        units = f" {variable.units}" if variable.units else ""
        labels = _labels(result, variable)
        if not variable.dims:
            yield name, f"{_value(variables, variable, ())}{units}"
        elif labels or (len(variable.dims) == 1 and len(variable.data) <= WRITTEN_OUT):
            values = [_value(variables, variable, (i,)) for i in range(len(variable.data))]
            yield name, f"{', '.join(f'{n} {v}' if n else v for n, v in zip_longest(labels, values))}{units}"
        else:
            yield name, _range(variable, units)


def _labels(result: Result, variable: Variable) -> list[str]:
    """Return the names of the entries along the variable's dimension, where the result has them.

    A dimension "split" is named by an attribute `splits`, and any dimension by an attribute `names`.
    """
    for attribute in (f"{variable.dims[0]}s", "names") if len(variable.dims) == 1 else ():
        names = getattr(result, attribute, None)
        if isinstance(names, list | tuple) and len(set(names)) == len(names) == len(variable.data):
            return [str(name) for name in names]
    return []


def _value(variables: Mapping[str, Variable], variable: Variable, at: tuple[int, ...]) -> str:
    """Return one number as value ± standard error, or value [low, high]."""
    value = variable.data[at].item()
    stderr = variables.get(variable.stderr or "")
    interval = variables.get(variable.interval or "")
    if stderr is not None and stderr.data.shape == variable.data.shape:
        return uncertain(value, float(stderr.data[at]))
    if interval is not None and interval.data.shape == (*variable.data.shape, 2):
        low, high = (number(bound.item()) for bound in interval.data[at])
        return f"{number(value)} [{low}, {high}]"
    return number(value)


def _range(variable: Variable, units: str) -> str:
    data = variable.data
    shape = " x ".join(f"{size} {dim}" for dim, size in zip(variable.dims, data.shape, strict=True))
    if data.dtype.kind == "b":
        return f"{int(data.sum()):,} of {data.size:,} true ({shape})"
    if data.dtype.kind not in "iuf":
        return f"({shape})"
    finite = data[np.isfinite(data)]
    missing = data.size - finite.size
    ends = f"{number(finite.min().item())} ... {number(finite.max().item())}" if finite.size else "none finite"
    return f"{ends}{units} ({shape}{f', {missing:,} not finite' if missing else ''})"


def _entry_json(entry: Entry) -> dict[str, Any]:
    shown: dict[str, Any] = {"kind": entry.kind, "id": entry.id, "group": entry.group, "status": entry.status}
    try:
        result = entry.result
    except ArchiveError as error:
        return {**shown, "error": str(error)}
    attributes = result.attributes()
    variables = result.variables()
    return {
        **shown,
        "section": result.section,
        "dims": {n: dict(zip(v.dims, v.data.shape, strict=True)) for n, v in variables.items() if v.dims},
        "summary": plain(result.summary()),
        **{key: plain(attributes[key]) for key in ("cost", "settings", "checks", "warnings", "notes")},
    }


# ---------------------------------------------------------------------------------------------- text


def number(value: Any) -> str:
    """Return a number as people read it: five significant digits, integers whole."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    return printable(str(value))


def uncertain(value: float, stderr: float) -> str:
    """Return value ± standard error, both cut at the error's second digit; the value alone without an error."""
    if not math.isfinite(value) or not math.isfinite(stderr):
        return number(value)
    if stderr <= 0:
        return f"{number(value)} ± {number(stderr)}"
    decimals = max(0, 1 - math.floor(math.log10(stderr)))
    if decimals > 7 or max(abs(value), stderr) >= 1e7:
        return f"{value:.5g} ± {stderr:.2g}"
    return f"{value:,.{decimals}f} ± {stderr:,.{decimals}f}"


def _pairs(mapping: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {number(v) if isinstance(v, float) else v}" for k, v in mapping.items())


def _field(name: str, text: str) -> Iterator[str]:
    if text:
        yield from _wrapped(f"{name:<11} {text}", "  ", " " * 14)


def _wrapped(text: str, indent: str = "", later: str | None = None) -> Iterator[str]:
    """Yield lines of at most `WIDTH` columns; a word that is longer than a line is cut into lines."""
    yield from textwrap.wrap(
        printable(text),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  " if later is None else later,
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )


def printable(text: str) -> str:
    """Return text with control characters as "?", so that a name cannot drive the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _finite(value: Any) -> tuple[Any, int]:
    """Return `value` with every number that is not finite as None, and how many there were."""
    if isinstance(value, float) and not math.isfinite(value):
        return None, 1
    if isinstance(value, dict):
        pairs = {k: _finite(v) for k, v in value.items()}
        return {k: v for k, (v, _) in pairs.items()}, sum(n for _, n in pairs.values())
    if isinstance(value, list):
        items = [_finite(v) for v in value]
        return [v for v, _ in items], sum(n for _, n in items)
    return value, 0
