"""What a worker does with a checkpoint: the same measurements as one process makes, told instead of archived."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landscape.archive.parcel import Parcel, unpack_parcel
from landscape.archive.schema import Subject, dump_json, load_json
from landscape.differences import differences
from landscape.errors import LandscapeError, MeasurementError
from landscape.results import Result, measurements

from ..execution import Execution
from ..posthoc import tasks_of
from ..selection import Chosen, choose
from ..subjects import Prepared
from ..workers.errors import told
from ..workers.lines import in_text, out_of_text, rows_in_text, rows_out_of_text
from ..workers.pool import gpus_for
from ..workers.process import Speaker
from ..workers.stopping import Stop, at_once
from .company import along, led
from .jobs import WORKER


class Measuring:
    """Measures the checkpoints that it is given, as the run was planned.

    `setup` holds the arguments of `plan_run` ("how") and a checkpoint of each task ("tasks").
    """

    def __init__(self, setup: Mapping[str, Any], speaker: Speaker, stop: Stop) -> None:
        self._setup = setup
        self._how, self._each = setup["how"], setup["tasks"]
        self._speaker, self._stop = speaker, stop
        self._tasks = tasks_of(self._how, lambda text: None)  # what is called was said before

    def __call__(self, job: Mapping[str, Any]) -> None:
        """Measure one checkpoint, and tell what becomes of it."""
        try:
            with at_once(self._stop):
                found = self._measure(job)
        except KeyboardInterrupt:
            if not self._stop.asked:
                raise
            self._speaker.tell(stopped=True)
        except Exception as error:
            # Behind an error of somebody else's, such as a GPU's, the process may be good for nothing.
            self._speaker.tell(error=told(error), spent=not isinstance(error, LandscapeError))
        else:
            self._speaker.tell(**found)

    def _measure(self, job: Mapping[str, Any]) -> dict[str, Any]:
        ready = self._tasks.prepare(job["path"])
        _check_same(ready, load_json(job["depends"]))
        keeper = _Teller(job, self._speaker)
        execution = Execution(
            ready,
            self._chosen(job["wanted"]),
            self._how["preset"],
            lambda text: self._speaker.tell(say=text),
            keeper,
            False,
            # By the clock on the wall, the only one that all processes share: it may have taken seconds to come here.
            None if job["until"] is None else time.monotonic() + job["until"] - time.time(),
            began=lambda number: self._speaker.tell(begins=number),
        )
        with self._company(job):
            outcome = execution.measure(job["name"])
        about = {name: getattr(outcome, name) for name in outcome.__dataclass_fields__ if name != "results"}
        return {
            "done": {**about, "missing": dict(outcome.missing)},
            "results": {name: keeper.number(result) for name, result in outcome.results.items()},
            "unfinished": execution.unfinished,
            "reused": execution.log.reused,
        }

    def _company(self, job: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
        """Return what this process measures within: others go along, or it goes along itself, or it is alone."""
        if "along" in job:
            self._speaker.tell(ready=True)
            return along(job["along"])
        if (of := self._setup["each"]) > 1:
            return led(WORKER, self._setup, job, of, gpus_for(self._how["device"]))
        return contextlib.nullcontext()

    def _chosen(self, wanted: Sequence[str]) -> list[Chosen]:
        """Return the measurements of these names, as the run chose them."""
        if not measurements().keys() >= set(wanted):
            for path in self._each:  # the file of another checkpoint's task may register it
                self._tasks.prepare(path)
        unknown = [name for name in wanted if name not in measurements()]
        if unknown:
            raise MeasurementError(
                f"a worker doesn't know the measurement {unknown[0]!r}: register it in the task's file, or measure "
                "with one worker"
            )
        how = self._how
        chosen = choose(how["only"], how["preset"], how["options"], how["also"])
        return [c for c in chosen if c.measurement.name in wanted]

    def warn(self, message: Warning | str, category: type[Warning], *_: Any) -> None:
        """Tell a warning of Python's, in place of warnings.showwarning."""
        self._speaker.tell(warning=str(message), kind=category.__name__)


class _Teller:
    """Takes the place of an archive's writer: what is added is told the process that has it."""

    def __init__(self, job: Mapping[str, Any], speaker: Speaker) -> None:
        self._speaker = speaker
        self.path = Path(job["archive"])
        self.earlier = [unpack_parcel(out_of_text(text)) for text in job["earlier"]]
        self.unfinished = {key: rows_out_of_text(rows) for key, rows in job["rows"].items()}
        self.known: dict[str, Mapping[str, Any]] = load_json(job["known"])
        self._results = [e.result for e in self.earlier]

    def number(self, result: Result) -> int:
        """Return by which number both processes know a result."""
        return next(i for i, r in enumerate(self._results) if r is result)

    def add_all(
        self, results: Sequence[Result], *, subject: Subject, asked: str = "", replaces: Sequence[Any] = ()
    ) -> None:
        """Tell what one measurement gave, in one line: all of it or, where the process dies, nothing."""
        self._speaker.tell(
            add=[in_text(Parcel(result, subject, asked).pack()) for result in results],
            replaces=[self.number(old.result) for old in replaces],
        )
        self._results += results

    def keep(self, key: str, rows: np.ndarray, facts: Mapping[str, Any]) -> None:
        """Tell rows of a measurement that is under way."""
        self._speaker.tell(keep=key, rows=rows_in_text(rows), facts=dump_json(facts))


def _check_same(ready: Prepared, expected: Mapping[str, Any]) -> None:
    """Raise MeasurementError where the task is another one in this process, such as one whose data nobody seeded."""
    found = differences(expected, load_json(dump_json(ready.depends())))
    if found:
        raise MeasurementError(
            f"{ready.reference} is not the same in every process, another is {', '.join(found)}: seed what it draws at "
            "random, or measure with one worker"
        )
