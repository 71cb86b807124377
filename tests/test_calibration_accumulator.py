"""The accumulator: any split into batches, processes and devices gives the same counts and sums, in fixed memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from landscape.calibration.accumulator import CalibrationAccumulator
from landscape.calibration.cells import FINE, Cells
from landscape.calibration.scores import calibration_error
from landscape.calibration.table import Calibration
from landscape.errors import MeasurementError

CPU = torch.device("cpu")


def logits_of(seed: int, n: int = 700, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, classes, generator=g) * 2
    return z * 1.4, torch.multinomial(z.softmax(1), 1, generator=g)[:, 0]


def pairs(seed: int, n: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    c = 1 - 0.5 * torch.rand(n, generator=g, dtype=dtype) ** 3
    return c, (torch.rand(n, generator=g, dtype=dtype) < c - 0.03).long()


def assert_same(a: Calibration, b: Calibration, *, but: tuple[str, ...] = ()) -> None:
    """Counts exactly, sums to the rounding of their order (1e-11 of numbers of order 1)."""
    mine, theirs = a.variables(), b.variables()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if name not in but:
            if value.data.dtype.kind == "i":
                assert value.data.tolist() == theirs[name].data.tolist(), name
            else:
                np.testing.assert_allclose(value.data, theirs[name].data, rtol=1e-9, atol=1e-11, err_msg=name)


# ------------------------------------------------------------------------------------------------ cells


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "edges",
    [np.arange(16) / 15, np.arange(1001) / 1000, [0, 1], [0, 1e-9, 0.3, 0.3000001, 0.3000002, 1 - 1e-12, 1]],
    ids=["15", "1000", "one", "close"],
)
def test_cells_keep_to_the_edges(edges: Any, dtype: torch.dtype) -> None:
    edges = np.asarray(edges, dtype=np.float64)
    on = torch.tensor(edges).to(dtype)
    g = torch.Generator().manual_seed(0)
    tiny = torch.logspace(-40, 0, 1000, dtype=dtype)
    above, below = (torch.nextafter(on, torch.tensor(x, dtype=dtype)).clamp(0, 1) for x in (2.0, -1.0))
    c = torch.cat([torch.rand(20_000, generator=g, dtype=dtype), on, above, below, tiny, 1 - tiny])
    y = (torch.rand(len(c), generator=g) < 0.5).long()
    cells = Cells(edges, CPU)
    keys = cells.keys(c, y)
    assert torch.equal(keys // len(cells), y)
    at = (keys % len(cells)).numpy()
    assert cells.bin_of[at].tolist() == np.maximum(np.searchsorted(edges, c.double().numpy()) - 1, 0).tolist()
    assert (np.diff(at[np.argsort(c.numpy(), kind="stable")]) >= 0).all()
    assert len(cells) == FINE + len(edges) - 2
    ends = cells.upper_ends()
    assert (c.double().numpy() <= ends[at]).all()
    assert (c.double().numpy()[at > 0] > ends[at[at > 0] - 1]).all()


def test_cells_are_narrow() -> None:
    ends = Cells(np.array([0.0, 1.0]), CPU).upper_ends()
    used = np.unique(ends)
    width = np.diff(used, prepend=0.0)
    distance = 1 - used + width  # of a cell's lower end to 1
    assert width.max() <= 1 / 512 + 2**-24
    near = distance > 2.0**-23  # the last cell takes in all that float32 can't tell from 1
    # A boundary is where float32 rounds 1 - c over it: half a unit early.
    assert (width[near] <= distance[near] / 256 + 2**-24).all()


# ------------------------------------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("defer", [False, True])
@pytest.mark.parametrize("kind", ["multiclass", "binary", "multilabel", "top-label", "pixels", "ignored"])
def test_batches_and_merged_parts_are_the_whole(kind: str, defer: bool) -> None:
    z, y = logits_of(0)
    given: dict[str, Any] = {"logits": z, "labels": y}
    settings: dict[str, Any] = {}
    if kind == "binary":
        given = {"logits": z[:, 0], "labels": y % 2}
    elif kind == "multilabel":
        given, settings = {"logits": z, "labels": (z > 0.5).long()}, {"kind": "multilabel"}
    elif kind == "top-label":
        c, right = pairs(0, 700)
        given, settings = {"probabilities": c, "labels": right}, {"kind": "top-label"}
    elif kind == "pixels":
        given = {"logits": z.reshape(70, 10, 5).movedim(2, 1), "labels": y.reshape(70, 10)}
    elif kind == "ignored":
        z[::3] = torch.nan
        given, settings = (
            {"logits": z, "labels": y.index_fill(0, torch.arange(0, 700, 3), -100)},
            {"ignore_index": -100},
        )
    whole = calibration_error(**given, **settings)

    def part(rows: slice) -> CalibrationAccumulator:
        return accumulator().update(**{k: v[rows] for k, v in given.items()})

    def accumulator() -> CalibrationAccumulator:
        return CalibrationAccumulator(**settings, defer=defer)

    n = len(given["labels"])
    batches = accumulator()
    for start in range(0, n, n // 7):
        batches.update(**{k: v[start : start + n // 7] for k, v in given.items()})
    merged = accumulator().merge(part(slice(0, n // 3))).merge(part(slice(n // 3, n))).merge(accumulator())
    saved = accumulator().load_state_dict(batches.state_dict())
    for found in (batches, merged, saved):
        assert_same(found.compute(), whole)
        assert found.samples == whole.samples


def test_a_state_goes_through_a_file_and_on(tmp_path: Any) -> None:
    z, y = logits_of(1)
    first = CalibrationAccumulator().update(logits=z[:300], labels=y[:300], groups=torch.arange(300) // 3)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = (
        CalibrationAccumulator()
        .load_state_dict(state)
        .update(logits=z[300:], labels=y[300:], groups=torch.arange(300, 700) // 3)
    )
    assert_same(again.compute(), calibration_error(logits=z, labels=y, groups=torch.arange(700) // 3))
    assert first.samples == 300  # the state is a copy where it is added to
    with pytest.raises(MeasurementError, match="bins"):
        CalibrationAccumulator(bins=10).load_state_dict(state)


def test_a_batch_refused_for_its_groups_leaves_no_trace() -> None:
    c, y = pairs(0, 100)
    accumulator = CalibrationAccumulator(kind="top-label").update(probabilities=c, labels=y, groups=torch.arange(100))
    with pytest.raises(MeasurementError, match="groups= must be given with every batch"):
        accumulator.update(probabilities=c.double(), labels=y)
    assert accumulator.facts["dtype"] == "float32"
    assert accumulator.samples == 100


def test_groups_go_across_batches_and_accumulators() -> None:
    z, y = logits_of(2)
    groups = torch.arange(700) % 40
    whole = calibration_error(logits=z, labels=y, groups=groups)
    parts = [
        CalibrationAccumulator().update(logits=z[rows], labels=y[rows], groups=groups[rows])
        for rows in (slice(0, 333), slice(333, 700))
    ]
    merged = parts[0].merge(parts[1]).compute()
    assert merged.groups == whole.groups == 40
    assert_same(merged, whole)
    equal = calibration_error(logits=z, labels=y, groups=groups, mass="equal")
    assert equal.groups == 40
    assert np.allclose(equal.counts, 700 / 15, atol=1)


def test_all_ranks_get_what_all_ranks_have_seen() -> None:
    """Two processes with gloo, one of them with twice the samples, then one without any."""
    code = """
import json, sys, torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
from test_calibration_accumulator import logits_of
from landscape.calibration.accumulator import CalibrationAccumulator
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{file}", rank=rank, world_size=2)
z, y = logits_of(0)
rows = slice(0, 200) if rank == 0 else slice(200, 700)
a = CalibrationAccumulator().update(logits=z[rows], labels=y[rows]).all_reduce()
b = CalibrationAccumulator()
if rank:
    b.update(logits=z, labels=y)
print(json.dumps([x.compute().summary() for x in (a, b.all_reduce())]))
dist.destroy_process_group()
"""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        script = code.format(tests=str(Path(__file__).parent), file=str(Path(folder) / "store"))
        ranks = [
            subprocess.Popen([sys.executable, "-c", script, str(r)], stdout=subprocess.PIPE, text=True) for r in (0, 1)
        ]
        found = [json.loads(rank.communicate(timeout=120)[0].splitlines()[-1]) for rank in ranks]
    z, y = logits_of(0)
    whole = calibration_error(logits=z, labels=y)
    assert found[0] == found[1]
    for result in found[0]:
        assert result["ece"] == pytest.approx(whole.ece, rel=1e-12)
        assert result["samples"] == 700


# ------------------------------------------------------------------------------------------------ memory and limits


def bytes_of(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        state = list(state.values())
    return sum(map(bytes_of, state)) if isinstance(state, list | tuple) else 0


def test_memory_does_not_grow_with_the_samples() -> None:
    accumulator = CalibrationAccumulator(kind="top-label", exact=1000)
    sizes = []
    for seed in range(6):
        c, y = pairs(seed, 5000)
        accumulator.update(probabilities=c, labels=y)
        sizes.append(bytes_of(accumulator.state_dict()))
    assert len(set(sizes)) == 1
    assert sizes[0] < 250_000


def test_counts_go_on_after_two_to_the_24th() -> None:
    """A float32 count stops at 16,777,216; so does the summed confidence, earlier."""
    n = 1 << 20
    c, y = torch.full((n,), 0.75), torch.ones(n, dtype=torch.int64)
    accumulator = CalibrationAccumulator(kind="top-label", scores=False)
    for _ in range(17):
        accumulator.update(probabilities=c, labels=y)
    found = accumulator.compute()
    assert found.counts.sum() == 17 << 20
    assert found.ece == 0.25
    assert found.accuracy == 1.0


def test_half_precision_is_counted_exactly() -> None:
    c, y = pairs(0, 200_000)
    for dtype in (torch.float16, torch.bfloat16):
        half = c.to(dtype)
        found = CalibrationAccumulator(kind="top-label").update(probabilities=half, labels=y).compute()
        same = CalibrationAccumulator(kind="top-label").update(probabilities=half.double(), labels=y).compute()
        assert found.counts.tolist() == same.counts.tolist()
        assert found.ece == pytest.approx(same.ece, rel=1e-13)


def test_float32_logits_are_counted_as_in_float64() -> None:
    """Within 1e-9 of float64 throughout: here it is the same arithmetic, on 50,000 rows of 200 classes."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(50_000, 200, generator=g) * 3
    y = torch.randint(0, 200, (50_000,), generator=g)
    found = CalibrationAccumulator().update(logits=z, labels=y).compute()
    p = z.double().softmax(1)
    sure, top = p.max(1)
    gap = (sure - (top == y).double()).numpy()
    bins = np.maximum(np.ceil(sure.numpy() * 15).astype(int) - 1, 0)
    assert found.ece == pytest.approx(np.abs(np.bincount(bins, gap, minlength=15)).sum() / 50_000, abs=1e-12)
    wide = CalibrationAccumulator().update(logits=z.double(), labels=y).compute()
    assert_same(found, wide)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e30])
def test_huge_logits_neither_overflow_nor_vanish(scale: float) -> None:
    z, y = logits_of(3)
    z = z.double() * scale - scale
    found = CalibrationAccumulator().update(logits=z, labels=y).compute()
    reference = torch.nn.functional.cross_entropy(z, y).item()
    assert found.nll == pytest.approx(reference, rel=1e-12)
    assert found.mean_confidence == pytest.approx(z.softmax(1).amax(1).mean().item(), rel=1e-12)


def test_the_first_class_wins_a_tie() -> None:
    z = torch.zeros(40, 3)
    z[:, 0] = -1.0
    for x in (z, z.double(), z.half(), z.bfloat16()):
        found = CalibrationAccumulator().update(logits=x, labels=torch.arange(40) % 4 % 3).compute()
        assert found.class_predicted is not None
        assert found.class_predicted.tolist() == [0, 40, 0]


# ------------------------------------------------------------------------------------------------ ranks from cells


def test_curves_from_cells_keep_to_their_bounds() -> None:
    c, y = pairs(0, 100_000, torch.float64)
    exact = CalibrationAccumulator(kind="top-label", exact=1 << 20).update(probabilities=c, labels=y).compute()
    cells = CalibrationAccumulator(kind="top-label", exact=0).update(probabilities=c, labels=y).compute()
    curves = "ks aurc excess_aurc risk confidence_std smooth_ece smooth_ece_bandwidth smooth_accuracy smooth_density"
    assert_same(cells, exact, but=tuple(curves.split()))
    assert not exact.notes
    text = next(note for note in cells.notes if "AURC is within" in note)
    aurc, ks = (float(word.strip(",")) for word in text.split() if word[0].isdigit())
    assert 0 < aurc < 2e-3
    assert abs(cells.aurc - exact.aurc) <= aurc
    assert cells.ks <= exact.ks <= cells.ks + ks
    assert cells.smooth_ece == pytest.approx(exact.smooth_ece, rel=0.01)  # cells of 1/256 against a bandwidth of 0.03
    assert cells.risk == pytest.approx(exact.risk, abs=2e-3)


def test_equal_mass_bins_from_cells_are_equal_within_what_they_say_and_exact_in_two_passes() -> None:
    c, y = pairs(0, 50_000)
    exact = calibration_error(probabilities=c, labels=y, kind="top-label", mass="equal", bins=10)
    assert exact.counts.tolist() == [5000] * 10
    first = CalibrationAccumulator(kind="top-label", mass="equal", bins=10, exact=0)
    first.update(probabilities=c, labels=y)
    found = first.compute()
    note = next(note for note in found.notes if "equal-mass" in note)
    off = float(note.split("within ")[1].split()[0])
    assert off < 0.02
    assert np.abs(found.counts / 50_000 - 0.1).max() <= off * 1.05  # printed to two digits
    second = CalibrationAccumulator(kind="top-label", bins=exact.edges).update(probabilities=c, labels=y).compute()
    assert second.counts.tolist() == exact.counts.tolist()
    assert second.ece == pytest.approx(exact.ece, rel=1e-12)


# ------------------------------------------------------------------------------------------------ in a training loop


def test_a_training_loop_needs_no_forward_pass_of_its_own() -> None:
    net = nn.Linear(4, 3)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(96) % 3
    accumulator, seen = CalibrationAccumulator(), []
    for rows in (x.split(32),):
        for i, part in enumerate(rows):
            logits = net(part)
            target = y[32 * i : 32 * i + 32]
            accumulator.update(logits=logits, labels=target)  # needs no detach
            seen.append(logits.detach().clone())
            loss = nn.functional.cross_entropy(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert len(calls) == 3
    assert_same(accumulator.compute(), calibration_error(logits=torch.cat(seen), labels=y))


# ------------------------------------------------------------------------------------------------ faults


def test_a_faulty_batch_leaves_no_trace() -> None:
    z, y = logits_of(0, n=70_000, classes=3)  # more than one block
    accumulator = CalibrationAccumulator().update(logits=z, labels=y)
    before = json.dumps(accumulator.compute().summary())
    bad = z.clone()
    bad[-1, 1] = torch.nan
    for broken in (
        {"logits": bad, "labels": y},
        {"logits": z, "labels": y.clone().index_fill_(0, torch.tensor([69_999]), 3)},
    ):
        with pytest.raises(MeasurementError, match="row 69999"):
            accumulator.update(**broken)
    with pytest.raises(MeasurementError, match="they are probabilities"):
        accumulator.update(logits=z.softmax(1), labels=y)
    assert json.dumps(accumulator.compute().summary()) == before
    fresh = CalibrationAccumulator()
    with pytest.raises(MeasurementError, match="row 69999"):
        fresh.update(logits=bad, labels=y)
    assert fresh.update(logits=z[:, :2], labels=y % 2).samples == 70_000  # of another shape: nothing was kept


@pytest.mark.parametrize("what", ["nan", "inf", "label", "probability"])
def test_a_fault_that_is_put_off_is_named_in_compute(what: str) -> None:
    z, y = logits_of(0)
    accumulator = CalibrationAccumulator(defer=True)
    name, x = ("probabilities", z.softmax(1)) if what == "probability" else ("logits", z)
    accumulator.update(**{name: x}, labels=y)
    x, y = x.clone(), y.clone()
    if what == "label":
        y[33] = 7
    else:
        x[33, 2] = {"nan": torch.nan, "inf": -torch.inf, "probability": 1.2}[what]
    accumulator.update(**{name: x}, labels=y)
    accumulator.update(**{name: x}, labels=y)
    with pytest.raises(MeasurementError, match="row 33 of update 1"):
        accumulator.compute()
    other = CalibrationAccumulator(defer=True).merge(accumulator)
    with pytest.raises(MeasurementError, match="row 33 of update 1"):
        other.compute()


CASES: dict[str, tuple[Any, str]] = {
    "other classes": (lambda a, z, y: a.update(logits=z[:, :3], labels=y % 3), "3 classes"),
    "other input": (lambda a, z, y: a.update(probabilities=z.softmax(1), labels=y), "give each its own"),
    "groups now": (lambda a, z, y: a.update(logits=z, labels=y, groups=y), "every batch, or with none"),
    "other bins": (lambda a, z, y: a.merge(CalibrationAccumulator(bins=10)), "different bins"),
    "other predictions": (
        lambda a, z, y: a.merge(CalibrationAccumulator().update(logits=z[:, 0], labels=y % 2)),
        "different predictions",
    ),
    "float groups": (
        lambda a, z, y: CalibrationAccumulator().update(logits=z, labels=y, groups=y.double()),
        "groups must be integers",
    ),
    "group lengths": (
        lambda a, z, y: CalibrationAccumulator().update(logits=z, labels=y, groups=y[:3]),
        "one for each sample",
    ),
    "nothing": (lambda a, z, y: CalibrationAccumulator().compute(), "nothing was counted"),
    "edges": (lambda a, z, y: CalibrationAccumulator(bins=[0, 0.5, 0.5, 1]), "must rise from 0 to 1"),
    "edges and mass": (lambda a, z, y: CalibrationAccumulator(bins=[0, 1], mass="equal"), "finds its own edges"),
    "kind": (lambda a, z, y: CalibrationAccumulator(kind="pixels").update(logits=z, labels=y), "is not one of"),
    "pairs of logits": (
        lambda a, z, y: CalibrationAccumulator(kind="top-label").update(logits=z[:, 0], labels=y % 2),
        "the confidences themselves",
    ),
    "labels of several": (
        lambda a, z, y: CalibrationAccumulator(kind="multilabel").update(logits=z, labels=y),
        "labels of one shape",
    ),
    "equal mass of groups": (
        lambda a, z, y: CalibrationAccumulator(mass="equal", exact=10).update(logits=z, labels=y, groups=y).compute(),
        "need every pair",
    ),
    "interval": (lambda a, z, y: a.compute(interval="bayes"), "is not one of 'inverted'"),
}


@pytest.mark.parametrize(("act", "message"), CASES.values(), ids=CASES.keys())
def test_what_does_not_fit_is_one_clear_line(act: Any, message: str) -> None:
    z, y = logits_of(0)
    accumulator = CalibrationAccumulator().update(logits=z, labels=y)
    with pytest.raises(MeasurementError) as caught:
        act(accumulator, z, y)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert accumulator.samples == 700
