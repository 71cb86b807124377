"""The recorder of a cell's training, and its probes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from landscape.errors import TrainingError
from landscape.training.registry import nearest

from ..curvature import CurvatureProbe
from ..noise import GradientNoise
from ..probe import Probe
from ..recorder import Recorder, default_probes
from ..surface import SurfaceProbe
from ..terms import LossTerms
from ..when import every
from ..workers.stopping import Interrupted
from .how import How
from .parts import Parts
from .sources import Source

#: What can be tracked beside the recorder's own default, by name, each at its own default moments.
TRACKS: Mapping[str, Callable[[], Probe]] = {
    "curvature": CurvatureProbe,
    "noise": lambda: GradientNoise(source="samples"),
    "terms": LossTerms,
    "surface": SurfaceProbe,
}


def chosen_probes(probes: Sequence[Probe | str] | None) -> list[Probe] | None:
    """Return the probes of a recorder: those given, or the default ones and those named; None is the default alone.

    Raises TrainingError for an unknown name, with the nearest ones.
    """
    if probes is None:
        return None
    named = [p for p in probes if isinstance(p, str)]
    for name in named:
        if name not in TRACKS:
            raise TrainingError(f"there is nothing to track called {name!r}{nearest(name, TRACKS)}")
    # Probes keep what they learn of a run (eigenvectors to start from, what they declared): each run gets its own.
    given = [copy.deepcopy(p) for p in probes if not isinstance(p, str)]
    return [*(given or default_probes()), *(TRACKS[n]() for n in named)]


@contextlib.contextmanager
def recording(
    path: Path, parts: Parts, how: How, *, facts: Mapping[str, Any], source: Source, state: Any = None
) -> Iterator[Recorder | None]:
    """Yield the recorder of a training, None where nothing is recorded.

    `state` is what a half-done training saved of its recorder: rows that it recorded later are superseded. Without one
    the training begins anew, and so does its record. A training that leaves when asked to is "interrupted".
    """
    if not how.record:
        yield None
        return
    cell = parts.cell
    recorder = Recorder(
        path,
        parts.model,
        parts.optimizer,
        task=parts.task,
        probes=chosen_probes(how.probes),
        checkpoints=every(epochs=how.checkpoints) if how.checkpoints else None,
        task_reference=source.reference or None,
        task_settings=source.settings(cell.settings, cell.seed),
        task_loss=cell.loss,
        facts={**facts, "name": cell.label},
        resume=state is not None,
        force=state is None,
        seed=cell.seed,
    )
    with recorder:
        if state is not None:
            recorder.load_state_dict(state)
        try:
            yield recorder
        except Interrupted:
            recorder.close("interrupted")
            raise
