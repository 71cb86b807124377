"""An archive into Weights & Biases or MLflow: settings, final numbers, the record of the training, the file itself.

Each tracker is reached through its public interface alone, and imported when it is asked for.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ArchiveError
from ..results import Result, kind_of
from .reader import Archive, open_archive

#: Entries of an array that are sent one by one, of arrays without names (chosen by us: the first eigenvalues).
MOST = 10
#: MLflow takes at most 1,000 metrics and 100 parameters at a time, and parameters of at most 6,000 letters.
BATCH, PARAMETERS, LETTERS = 1000, 100, 6000


@dataclass(frozen=True)
class Content:
    """What is sent: `settings` and `facts` as they are, final `numbers` by name, `steps` as (step, {name: value})."""

    name: str
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    numbers: Mapping[str, float]
    steps: Sequence[tuple[int, Mapping[str, float]]] = ()
    files: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Tracker:
    """Where runs are kept: its module, its options with what they mean; `send(module, content, options) -> place`."""

    name: str
    module: str
    options: Mapping[str, str]
    send: Callable[[Any, Content, dict[str, str]], str]


def export_to_tracker(
    source: str | os.PathLike[str], tracker: str, *, checkpoint: str | None = None, **options: str
) -> str:
    """Send an archive to a tracker of TRACKERS, and return where it is (an address, a folder or a run's id).

    `columns="all"` sends every parameter's column of the norms, and not the global one alone; the other options are
    the tracker's. Raises ArchiveError where the tracker isn't installed, refuses, or has no such option, and where
    the archive holds several checkpoints and none is chosen.
    """
    chosen = TRACKERS[tracker]
    known = {**chosen.options, "columns": "global (default) or all"}
    unknown = set(options) - set(known)
    if unknown:
        raise ArchiveError(f"{tracker} has no option {sorted(unknown)[0]!r}; it has {', '.join(known)}")
    columns = options.pop("columns", "global")
    if columns not in ("global", "all"):
        raise ArchiveError(f"columns is global or all, got {columns!r}")
    found = content(open_archive(source), checkpoint, every_column=columns == "all")
    try:
        module = importlib.import_module(chosen.module)
    except ImportError as error:
        raise ArchiveError(
            f"{tracker} can't be imported ({error}); install it: pip install 'landscape-probe[{tracker}]'"
        ) from error
    try:
        return chosen.send(module, found, options)
    except Exception as error:  # whatever somebody else's service answers
        raise ArchiveError(
            f"{tracker} refused: {' '.join(str(error).split())[:1000] or type(error).__name__}"
        ) from error


def content(archive: Archive, checkpoint: str | None = None, *, every_column: bool = False) -> Content:
    """Return what an archive holds in the words of a tracker; numbers that aren't finite are left out."""
    entries = archive.select(subject=checkpoint) if checkpoint else list(archive.entries)
    labels = [str(s.label) for s in archive.subjects]
    if checkpoint and not entries:
        raise ArchiveError(f"{archive.path} holds no checkpoint {checkpoint!r}; it has {', '.join(labels) or 'none'}")
    if not checkpoint and len(labels) > 1:
        raise ArchiveError(
            f"{archive.path} holds {len(labels)} checkpoints ({', '.join(labels)}): choose one with --checkpoint"
        )
    numbers: dict[str, float] = {}
    for entry in entries:
        numbers.update(scalars(entry.result))
    steps = list(_steps(archive.history, every_column)) if archive.history else []
    if not numbers and not steps:
        raise ArchiveError(f"{archive.path} holds no numbers: there is nothing to send")
    subject = entries[0].subject if entries else None
    facts = {f"landscape.{k}": v for k, v in archive.attributes.items() if isinstance(v, str | int | float)}
    if subject is not None:
        own = {"checkpoint": subject.checkpoint, "fingerprint": subject.fingerprint, "task": subject.task}
        facts.update({f"landscape.{k}": v for k, v in own.items() if v})
    name = str(subject.label if subject is not None else archive.path.stem)
    return Content(name, dict(archive.run), facts, numbers, steps, (str(archive.path),))


def scalars(result: Result) -> dict[str, float]:
    """Return every finite number of a result by "kind/name", short arrays by "kind/name/entry", errors beside them."""
    kind, found = kind_of(result), {}
    for name, variable in result.variables().items():
        data = variable.data
        if variable.coordinate or data.dtype.kind not in "biuf" or data.ndim > 1:
            continue
        if data.ndim == 0:
            found[f"{kind}/{name}"] = float(data)
            continue
        for label, value in zip(_labels(result, variable.dims[0], len(data)), data[:MOST].tolist(), strict=False):
            found[f"{kind}/{name}/{label}"] = float(value)
    return {_clean(k): v for k, v in found.items() if math.isfinite(v)}


def _labels(result: Result, dim: str, size: int) -> Sequence[str]:
    for attribute in (f"{dim}s", "names"):
        names = getattr(result, attribute, None)
        if isinstance(names, tuple) and len(names) == size:
            return [str(n) for n in names]
    if dim == "bound":
        return ("low", "high")
    # Ranks and draws are told by number where there are few; bins and steps are curves, which a number doesn't tell.
    return [str(i + 1) for i in range(size)] if dim.startswith(("rank", "layer", "measure")) else ()


def _steps(history: Any, every_column: bool) -> Iterator[tuple[int, dict[str, float]]]:
    rows: dict[int, dict[str, float]] = {}
    for name in history.names:
        series = history[name].current()
        for k, column in enumerate(series.names):
            if column != "global" and series.names[0] == "global" and not every_column:
                continue
            key = _clean(name if column in (name, "global") else f"{name}/{column}")
            values = np.asarray(series.values[:, k], dtype=float)
            for i in np.flatnonzero(np.isfinite(values)).tolist():
                rows.setdefault(int(series.steps[i]), {})[key] = float(values[i])
    yield from sorted(rows.items())


def _clean(name: str) -> str:
    """Return a name of letters that both trackers take."""
    return re.sub(r"[^\w./ -]", "_", name)


# ------------------------------------------------------------------------------------------------ trackers


def _to_wandb(wandb: Any, found: Content, options: dict[str, str]) -> str:
    run = wandb.init(
        project=options.get("project", "landscape"),
        name=options.get("name", found.name),
        config={**found.settings, **found.facts},
        job_type="landscape",
        **{k: options[k] for k in ("entity", "group", "mode", "dir") if k in options},
    )
    done = False
    try:
        for step, values in found.steps:
            run.log(dict(values), step=step)
        run.summary.update(dict(found.numbers))
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", found.name) or "landscape", type="landscape-archive")
        for path in found.files:
            artifact.add_file(path)
        run.log_artifact(artifact)
        done = True
    finally:
        run.finish(exit_code=0 if done else 1)
    # Asked for its address, a run that is offline warns.
    return str(run.dir if options.get("mode") == "offline" else run.url or run.dir)


def _to_mlflow(mlflow: Any, found: Content, options: dict[str, str]) -> str:
    if "uri" in options:
        mlflow.set_tracking_uri(options["uri"])
    mlflow.set_experiment(options.get("experiment", "landscape"))
    tags = {k: str(v)[:LETTERS] for k, v in found.facts.items()}
    with mlflow.start_run(run_name=options.get("name", found.name), tags=tags) as run:
        settings = [(_clean(str(k)), str(v)[:LETTERS]) for k, v in found.settings.items()]
        for i in range(0, len(settings), PARAMETERS):
            mlflow.log_params(dict(settings[i : i + PARAMETERS]))
        now, last = int(time.time() * 1000), found.steps[-1][0] if found.steps else 0
        rows = [(k, v, step) for step, values in found.steps for k, v in values.items()]
        rows += [(k, v, last) for k, v in found.numbers.items()]
        client, make = mlflow.MlflowClient(), mlflow.entities.Metric
        for i in range(0, len(rows), BATCH):
            part = [make(key=k, value=v, timestamp=now, step=step) for k, v, step in rows[i : i + BATCH]]
            client.log_batch(run.info.run_id, metrics=part)
        for path in found.files:
            mlflow.log_artifact(path)
    return f"run {run.info.run_id}"


TRACKERS = {
    "wandb": Tracker(
        "wandb",
        "wandb",
        {
            "project": "landscape by default",
            "entity": "a team",
            "group": "runs that belong together",
            "name": "the run's",
            "mode": "online or offline",
            "dir": "the folder for its files",
        },
        _to_wandb,
    ),
    "mlflow": Tracker(
        "mlflow",
        "mlflow",
        {
            "experiment": "landscape by default",
            "uri": "the tracking server, or sqlite:///mlflow.db",
            "name": "the run's",
        },
        _to_mlflow,
    ),
}
