"""What each step changes: sizes of updates, their share of the weights, how far the weights have come."""

from __future__ import annotations

from collections.abc import Sequence

from landscape.dynamics.sharded import local, whole
from landscape.dynamics.updates import Updates as Measured

from .probe import EVERY_STEP, Followed, Probe, Quantity, Run, Step
from .when import When

#: Bytes that the copies of the weights may take before sketches take their place: chosen by us, a quarter of a small
#: accelerator's memory; three copies of 350 million float32 parameters.
MEMORY = 4 << 30


class Updates(Probe):
    """||theta_t - theta_(t-1)|| and ||theta_t|| of the whole and of each parameter, the ratio of the two, the distance
    from the start, and the cosine of successive updates.

    Quantities: `update_norm`, `weight_norm`, and `update` with columns ratio, distance and cosine. Three copies of the
    weights are held (five of small models); above `memory` bytes seeded sketches, whose relative standard error (0.28%)
    is noted as an event. Each recorded update is that of one step, also when `when` leaves steps out; the cosine is
    then NaN. The distance counts from where the recorder was attached; of a parameter that comes later (unfrozen into a
    group of its own), from its value when it came, and one that goes takes its part of the distance with it.

    Args:
        when: which steps; every one by default.
        layers: False records the norms of the whole alone.
        memory: bytes that copies may take, 4 GiB by default.
    """

    name = "updates"

    def __init__(self, when: When = EVERY_STEP, *, layers: bool = True, memory: int | None = MEMORY) -> None:
        self.when, self.layers, self.memory = when, layers, memory
        self._measured: dict[str, tuple[Followed, Measured]] = {}
        self._last: dict[str, int] = {}

    def everywhere(self, run: Run) -> bool:
        return any(f.sharded for f in run.followed)

    def start(self, run: Run) -> Sequence[Quantity]:
        found = []
        for f in run.followed:
            columns = f.columns(self.layers)
            found += [
                Quantity(f"update_norm{f.suffix}", columns, "weight", "Euclidean norm of what the step changed"),
                Quantity(f"weight_norm{f.suffix}", columns, "weight", "Euclidean norm of the weights after the step"),
                Quantity(
                    f"update{f.suffix}",
                    ("ratio", "distance", "cosine"),
                    "",
                    "||update|| / ||weights||; distance from the start; cosine of this update and the one before",
                ),
            ]
            self._follow(run, f)
        return found

    def _follow(self, run: Run, f: Followed) -> None:
        since = None
        if f.name in self._measured:
            old, before = self._measured.pop(f.name)
            if list(map(id, old.parameters)) == list(map(id, f.parameters)):
                self._measured[f.name] = f, before  # it is another optimizer that has changed
                return
            places = {id(p): i for i, p in enumerate(old.parameters)}
            since = before, [places.get(id(p)) for p in f.parameters]
        parts = [local(p) for p in f.parameters]
        reduce = whole(f.parameters) if f.sharded else None
        singly = self.when.steps is not None and self.when.steps > 1
        measured = Measured(parts, memory=self.memory, seed=run.seed, reduce=reduce, singly=singly, since=since)
        self._measured[f.name] = f, measured
        if not measured.exact:
            run.event(
                "sketched", f"updates are measured by sketches, to {measured.relative_error:.2%} (standard error)"
            )

    def before(self, run: Run, step: Step) -> None:
        f = step.followed
        if self._last.get(f.name, 0) != step.number - 1:
            self._measured[f.name][1].begin(step.copy)

    def after(self, run: Run, step: Step) -> None:
        f = step.followed
        self._last[f.name] = step.number
        for name, row in zip(("update_norm", "weight_norm", "update"), self._measured[f.name][1].rows(), strict=True):
            whole = self.layers or name == "update"
            run.record(name + f.suffix, step.number, row if whole else row[:1])

    def close(self) -> None:
        self._measured.clear()  # the copies, and a start that is no other run's
        self._last.clear()
