"""Figures for papers: the right size, letters and scale; words that carry the numbers; nothing global left behind."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import report_samples as samples
from click.testing import CliRunner
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from test_surface_figures import aligned, path

from landscape.archive.save import save_archive
from landscape.class_measure import score_classes
from landscape.class_scores import ClassScores
from landscape.cli.main import main
from landscape.curvature.spectrum import LayerCurvature
from landscape.errors import LandscapeError
from landscape.report import paper
from landscape.report.figures.record import _smoothed
from landscape.report.figures.registry import new_axes
from landscape.report.panels import COMPARED
from landscape.report.references import BY_KIND, _entries, bibtex, cited
from landscape.report.runs import gather, make_run
from landscape.report.style import PAPER, STYLES, settings, style_of, styled
from landscape.surface.fields import EigenvalueMap

KINDS = ("plane", "line", "eigenvalues", "trace", "sharpness", "calibration", "recalibration", "performance")


@dataclass
class Series:
    names: tuple[str, ...]
    steps: np.ndarray
    values: np.ndarray
    units: str = ""

    def column(self, name: str) -> np.ndarray:
        return self.values[:, self.names.index(name)]

    def current(self) -> Series:
        return self


@dataclass
class Event:
    step: int
    kind: str


class Record:
    """A training record as the archive gives it: Series by name, and events."""

    def __init__(self, steps: int = 200) -> None:
        t = np.arange(1, steps + 1)
        loss = np.exp(-t / 50)[:, None]
        loss[5] = np.nan
        self.held = {
            "loss": Series(("loss",), t, loss),
            "learning_rate": Series(("0", "1"), t, np.stack([0.1 / t, 0.2 / t], axis=1)),
            "curvature": Series(("lambda_max", "threshold", "margin"), t[::20], np.ones((len(t[::20]), 3)), "1"),
        }
        self.events = (Event(7, "spike"), Event(9, "epoch"))
        self.probed: dict[str, tuple[Any, ...]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def get(self, name: str) -> Series | None:
        return self.held.get(name)


def texts(figure: Any) -> list[Text]:
    return [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]


# ------------------------------------------------------------------------------------------------ size and style


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("runs", [1, 3])
def test_a_figure_has_the_columns_width_and_letters_that_can_be_read(kind: str, runs: int) -> None:
    drawn = paper.make_figure(samples.sample_runs(runs, points=9), kind)
    assert drawn.figure.get_size_inches()[0] in (PAPER.single, PAPER.double)
    sizes = {t.get_fontsize() for t in texts(drawn.figure)}
    assert PAPER.small <= min(sizes)
    assert max(sizes) <= PAPER.font


def words_of(drawn: paper.Drawn, monkeypatch: pytest.MonkeyPatch, path: Path) -> list[tuple[str, Bbox]]:
    """Return the words that the saved picture shows, each with its place in pixels, and last the whole picture."""
    seen: dict[int, tuple[str, Bbox]] = {}
    draw = Text.draw

    def look(self: Text, renderer: Any, *args: Any, **kwargs: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            seen[id(self)] = self.get_text(), self.get_window_extent(renderer)
        draw(self, renderer, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", look)
    drawn.save(path)
    monkeypatch.undo()
    width, height = (float(x) * drawn.style.dpi for x in drawn.figure.get_size_inches())
    return [*seen.values(), ("", Bbox([[0, 0], [width, height]]))]


def check_words(drawn: paper.Drawn, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Nothing is cut off at the picture's edge, and no words lie over others."""
    *found, (_, whole) = words_of(drawn, monkeypatch, folder / "figure.png")
    pixel = drawn.style.dpi / 100
    for text, box in found:
        assert min(box.x0 - whole.x0, box.y0 - whole.y0, whole.x1 - box.x1, whole.y1 - box.y1) > -pixel, text
    for (text, box), (other, near) in combinations(found, 2):
        across, up = (
            min(getattr(box, f"{c}1"), getattr(near, f"{c}1")) - max(getattr(box, f"{c}0"), getattr(near, f"{c}0"))
            for c in "xy"
        )
        assert across <= pixel or up <= 2 * pixel, (text, other)


@pytest.mark.parametrize(
    ("kind", "runs", "style"),
    [
        ("plane", 1, "paper"),
        ("recalibration", 4, "screen"),
        ("calibration", 3, "paper"),
        ("eigenvalues", 2, "talk"),
        ("layers", 1, "paper"),
        ("sample_scores", 1, "talk"),
    ],
)
def test_no_words_are_cut_or_lie_over_others(
    kind: str, runs: int, style: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = [replace(r, results={**r.results, "layers": (layers(),)}) for r in samples.sample_runs(runs, points=9)]
    check_words(paper.make_figure(chosen, kind, style=style), monkeypatch, tmp_path)


LONG = "a_very_long_name-with-learning_rate=0.0003-and-batch_size=1024-warmup_cosine(warmup=0.1)-seed"


@pytest.mark.parametrize(("kind", "view"), [("line", None), ("plane", (30, -60))])
def test_long_names_are_folded(
    kind: str, view: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = [replace(r, name=f"{LONG}{i}") for i, r in enumerate(samples.sample_runs(2, points=9))]
    drawn = paper.make_figure(runs, kind, view=view)
    found = words_of(drawn, monkeypatch, tmp_path / "figure.png")
    assert sum(text.replace("\n", "").startswith(LONG) for text, _ in found) == 2
    if view is None:
        check_words(drawn, monkeypatch, tmp_path)
    else:  # of the labels along axes in space the boxes are larger than the words
        (title, *_), (height,) = ([box for t, box in found if t.startswith(w)] for w in (LONG[:6], "height:"))
        assert not title.overlaps(height)


def test_long_names_of_trainings_are_folded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paper, "_record", lambda run: Record())
    runs = [replace(r, name=f"{LONG}{i}", archive=str(i)) for i, r in enumerate(samples.sample_runs(2, points=9))]
    check_words(paper.make_figure(runs, "training", column="single"), monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("runs", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_no_words_of_any_kind_are_cut_or_lie_over_others(
    kind: str, runs: int, style: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn = paper.make_figure(samples.sample_runs(runs, points=9), kind, style=style)
    check_words(drawn, monkeypatch, tmp_path)


def layers() -> LayerCurvature:
    names = ("embed", "block.self_attn", "block.self_attn.out_proj", "block.linear1", "block.linear2", "head")
    n = len(names)
    return LayerCurvature(
        largest=np.geomspace(0.08, 8, n), residuals=np.full(n, 1e-4), converged=np.ones(n, dtype=bool),
        sizes=np.full(n, 100), whole=10.0, names=names,
    )  # fmt: skip


def test_nothing_global_is_touched() -> None:
    before = dict(matplotlib.rcParams)
    paper.make_figure(samples.sample_runs(1, points=9), "surface", style="talk")
    with styled(PAPER):
        assert matplotlib.rcParams["font.size"] == PAPER.font
    assert dict(matplotlib.rcParams) == before


def test_styles_differ_in_letters_and_every_setting_is_matplotlibs() -> None:
    assert PAPER.font < STYLES["screen"].font < STYLES["talk"].font
    assert set(settings(PAPER)) <= set(matplotlib.rcParams)
    assert style_of(PAPER) is PAPER
    with pytest.raises(LandscapeError, match="no style 'poster'; there are paper, screen, talk"):
        style_of("poster")
    with pytest.raises(LandscapeError, match="got 'triple'"):
        PAPER.width("triple")


def test_the_same_numbers_give_the_same_file_and_text_stays_text(tmp_path: Path) -> None:
    runs = samples.sample_runs(2, points=9)
    for name in ("a.pdf", "b.pdf", "a.svg", "b.svg"):
        paper.make_figure(runs, "line").save(tmp_path / name)
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"/Type3" not in (tmp_path / "a.pdf").read_bytes()
    assert "step along d" in (tmp_path / "a.svg").read_text()


# ------------------------------------------------------------------------------------------------ one scale


def test_planes_side_by_side_share_span_and_colors() -> None:
    drawn = paper.make_figure(samples.sample_runs(4, points=9), "surface")
    panels = [ax for ax in drawn.figure.axes if ax.get_xlabel() or ax.get_title()]
    filled = [ax.collections[0] for ax in panels if ax.collections]
    assert len(filled) == 4
    assert len({c.get_clim() for c in filled}) == 1
    assert len({ax.get_xlim() for ax in panels}) == 1
    assert len(drawn.figure.axes) == 5  # one color bar


@pytest.mark.parametrize("kind", ["eigenvalues", "trace", "sharpness", "performance"])
def test_numbers_side_by_side_are_on_one_scale(kind: str) -> None:
    which = COMPARED[kind]
    alone = [paper.make_figure([run], kind).figure.axes[0] for run in samples.sample_runs(3)]
    apart = [getattr(ax, f"get_{which}lim")() for ax in alone]
    panels = paper.make_figure(samples.sample_runs(3), kind, overlay=False).figure.axes
    assert len(set(apart)) == 3
    low, high = zip(*apart, strict=True)
    assert {getattr(ax, f"get_{which}lim")() for ax in panels} == {(min(low), max(high))}


def test_a_flat_plane_gets_a_flat_figure() -> None:
    (run,) = samples.sample_runs(1, points=9)
    whole: Any = run.get("plane")
    heights = []
    for share in (1.0, 0.25):
        flat = replace(run, results={**run.results, "plane": (replace(whole, beta=whole.beta * share),)})
        figure = paper.make_figure([flat], "surface").figure
        figure.canvas.draw()
        boxes = [ax.get_tightbbox() for ax in figure.axes]
        heights.append(figure.get_size_inches()[1])
        assert max(b.y1 for b in boxes) - min(b.y0 for b in boxes) > 0.8 * figure.bbox.height
    assert heights[1] < 0.6 * heights[0]


def test_a_view_makes_a_surface_and_limits_are_kept() -> None:
    runs = samples.sample_runs(2, points=9)
    drawn = paper.make_figure(runs, "surface", view=(30, -60), zlim=(0, 5), scale="linear")
    for ax in drawn.figure.axes:
        assert ax.name == "3d"
        assert (ax.elev, ax.azim) == (30, -60)  # type: ignore[attr-defined]
        assert ax.get_zlim() == (0, 5)  # type: ignore[attr-defined]
    assert "on one span" in drawn.caption


def test_lines_lie_over_one_another_or_beside() -> None:
    runs = samples.sample_runs(3)
    over = paper.make_figure(runs, "line").figure.axes
    assert len(over) == 1
    assert [t.get_text() for t in over[0].get_legend().get_texts()] == [r.name for r in runs]
    assert len(paper.make_figure(runs, "line", overlay=False).figure.axes) == 3
    assert len(paper.make_figure(runs, "calibration", overlay=True).figure.axes) == 1


def test_the_record_of_a_training_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "_record", lambda run: Record() if run.archive else None)
    runs = [make_run(n, [], archive=f"{n}.h5") for n in "ab"]
    drawn = paper.make_figure([*runs, make_run("none", [])], "training")
    assert [ax.get_ylabel() for ax in drawn.figure.axes] == [
        "loss of the batch",
        "learning rate",
        "λ max (dashed: threshold)",
    ]
    assert "200 optimizer steps" in drawn.caption
    assert "learning rate, λ max against" in drawn.caption
    assert "gradient norm" not in drawn.caption  # not recorded, not drawn
    assert "2 × spike" in drawn.caption
    assert "cohen2021gradient" in drawn.bibtex


def test_one_quantity_of_a_training_is_a_figure_of_one_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "_record", lambda run: Record())
    runs = [make_run(n, [], archive=f"{n}.h5") for n in "ab"]
    drawn = paper.make_figure(runs, "training", quantity="lambda_max")
    (ax,) = drawn.figure.axes
    assert ax.get_ylabel() == "λ max (dashed: threshold)"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]  # also where the loss is left out
    assert drawn.figure.get_size_inches()[0] == PAPER.single
    assert "loss" not in drawn.caption
    assert "Losses are" not in drawn.methods
    two = paper.make_figure(runs, "training", quantity="lambda_max,loss").figure
    assert [ax.get_ylabel() for ax in two.axes] == ["λ max (dashed: threshold)", "loss of the batch"]
    whole = paper.make_figure(runs, "training", quantity="margin").figure.axes[0]
    assert whole.get_ylabel() == "curvature margin (1)"
    assert paper.make_figure(runs, "training", quantity="loss", scale="linear").figure.axes[0].get_yscale() == "linear"


def test_the_eigenvalue_of_an_adaptive_optimizer_is_called_preconditioned(monkeypatch: pytest.MonkeyPatch) -> None:
    adam, plain = Record(), Record()
    for record, scale in ((adam, 7.0), (plain, 1.0)):
        steps = record.held["curvature"].steps
        record.held["eigenvalue"] = Series(("1",), steps, np.full((len(steps), 1), 1 / scale))
    monkeypatch.setattr(paper, "_record", lambda run: adam if run.name == "adam" else plain)
    runs = [make_run(n, [], archive=f"{n}.h5") for n in ("adam", "sgd")]
    both = paper.make_figure(runs, "training", quantity="lambda_max")
    assert "λ max is that of the preconditioned Hessian for adam." in both.caption
    assert r"\cite{cohen2021gradient,cohen2022adaptive}" in both.methods
    assert "cohen2022adaptive" in both.bibtex
    alone = paper.make_figure(runs[:1], "training", quantity="lambda_max")
    assert "preconditioned Hessian." in alone.caption
    assert "cohen2021gradient" not in alone.bibtex
    assert "preconditioned" not in paper.make_figure(runs[1:], "training").caption
    assert "cohen" not in paper.make_figure(runs, "training", quantity="loss").bibtex


@pytest.mark.parametrize("style", STYLES)
def test_the_names_of_many_trainings_stand_below_and_are_not_cut(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "_record", lambda run: Record())
    runs = [make_run(f"label_smoothing-lr{i}", [], archive=f"{i}.h5") for i in range(5)]
    figure = paper.make_figure(runs, "training", style=style, quantity="lambda_max").figure
    figure.canvas.draw()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 5
    assert legend.get_lines()[0].get_linewidth() == figure.axes[0].get_lines()[0].get_linewidth()
    box, label = legend.get_window_extent(), figure.axes[0].yaxis.label.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.axes[0].xaxis.label.get_window_extent().y0 + 1
    assert label.y0 >= 0
    assert label.y1 <= figure.bbox.y1


def test_a_training_is_drawn_with_no_choice_that_it_does_not_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "_record", lambda run: Record())
    runs = [make_run(f"r{i}", [], archive=f"{i}.h5") for i in range(8)]
    for options, message in (
        ({"quantity": "gradient"}, "'gradient' was not recorded: there are loss, learning_rate, lambda_max, "),
        ({"quantity": "lambda_mx"}, "did you mean lambda_max"),
        ({"zlim": (0.0, 1.0)}, "a training has no zlim"),
        ({"overlay": False}, "share each panel"),
        ({}, "8 runs on one axis can't be told apart, at most 7"),
    ):
        with pytest.raises(LandscapeError, match=message):
            paper.make_figure(runs if not options else runs[:2], "training", **options)


# ------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cited_is_in_the_references(kind: str) -> None:
    drawn = paper.make_figure(samples.sample_runs(2, points=9), kind)
    keys = {k for group in re.findall(r"\\cite\{([^}]*)\}", drawn.methods) for k in group.split(",")}
    assert keys
    assert keys <= set(re.findall(r"^@\w+\{([^,]+),", drawn.bibtex, flags=re.MULTILINE))
    assert drawn.caption.endswith(".")


def test_a_caption_carries_the_numbers_and_their_intervals() -> None:
    (run,) = samples.sample_runs(1, points=9)
    said = paper.make_figure([run], "calibration").caption
    result: Any = run.get("calibration")
    assert f"{result.samples:,}" in said
    assert re.search(r"ECE \[95% interval\]: 0\.\d+ \[0\.\d+, 0\.\d+\]", said)
    said = paper.make_figure([run], "surface").methods
    assert "9 × 9 grid" in said
    assert "1,024 train samples" in said
    assert "PyTorch 2.13.0" in said


def test_a_single_threshold_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record()
    curvature = record.held["curvature"]
    record.held["curvature"] = replace(curvature, steps=curvature.steps[:1], values=curvature.values[:1] * [1, 12, 1])
    monkeypatch.setattr(paper, "_record", lambda run: record)
    drawn = paper.make_figure(samples.sample_runs(1, points=9), "training")
    (panel,) = [ax for ax in drawn.figure.axes if "threshold" in ax.get_ylabel()]
    marks = [line.get_ydata()[0] for line in panel.lines if line.get_marker() == "_"]  # type: ignore[index]
    assert marks == [12]
    assert "The training over 200 optimizer steps" in drawn.caption


def test_no_barrier_is_none() -> None:
    low = replace(path(), barrier=np.zeros_like(path().barrier))
    assert paper.make_figure([make_run("a", [low])], "path").caption.endswith("Highest barrier: none (train).")


def test_captions_say_what_is_drawn() -> None:
    """The numbers of scores of classes and of layers, and of any other kind the variable that its figure shows."""
    rng = np.random.default_rng(0)
    scores = ClassScores(**score_classes(*(rng.integers(k, 9 + k, (12, 3)) for k in (0, 9, 9))), split="test")
    runs = [make_run("a", [scores, layers(), samples.curl()])]
    text = paper.make_figure(runs, "class_scores").caption
    assert text.startswith("Intersection over union (IoU) of each class on test data, with 95% intervals")
    assert f"IoU {scores.mean_iou:.2f}" in text
    text = paper.make_figure(runs, "layers").caption
    assert "Dashed: the largest eigenvalue of all layers together, 10.00." in text
    text = paper.make_figure(runs, "test_curl").caption
    assert text == "Test curl: pairs, a map over layers and time."


def test_maps_of_eigenvalues_side_by_side_share_their_colors() -> None:
    runs = [make_run(name, [eigenvalue_map(top)]) for name, top in (("a", 0.1), ("b", 0.4))]
    drawn = paper.make_figure(runs, "eigenvalue_map")
    filled = [ax.collections[0] for ax in drawn.figure.axes if ax.collections and ax.get_xlabel()]
    assert [c.get_clim() for c in filled] == [(0.0, 0.4)] * 2
    assert "one color scale for all" in drawn.caption


def eigenvalue_map(top: float) -> EigenvalueMap:
    ends, shape = np.linspace(-1, 1, 3), (3, 3)
    known: dict[str, Any] = {"largest_residual": np.zeros(shape), "smallest_residual": np.zeros(shape)}
    known |= {"converged": np.ones(shape, dtype=bool), "products": np.ones(shape, dtype=int)}
    known["direction_norms"] = np.ones(2)
    smallest = -np.linspace(0, top, 9).reshape(shape)
    return EigenvalueMap(alpha=ends, beta=ends, largest=np.ones(shape), smallest=smallest, **known)


def test_a_failed_check_stands_in_the_caption() -> None:
    from dataclasses import replace

    from landscape.results import Check

    plane = replace(samples.plane(n=9), checks=(Check("center", "fail", "the center is not the checkpoint"),))
    assert "Note: the center is not the checkpoint." in paper.make_figure([make_run("a", [plane])], "surface").caption


def test_every_reference_is_whole_and_every_kind_points_at_one() -> None:
    entries = _entries()
    for key, text in entries.items():
        assert text.count("{") == text.count("}"), key
        assert "title = " in text
        assert "year = " in text
    assert {k for keys in BY_KIND.values() for k in keys} <= set(entries)
    assert bibtex(["li2018visualizing", "li2018visualizing"]).count("@") == 1
    assert cited([])[-2:] == ["landscape-probe", "paszke2019pytorch"]
    assert "VERSION" not in bibtex(cited([]))


def test_a_kind_of_the_users_own_is_drawn_with_a_caption() -> None:
    drawn = paper.make_figure([make_run("a", [samples.curl()])], "test_curl")
    assert "a map over layers and time" in drawn.caption


def test_straight_and_curved_paths_are_told_apart_and_share_their_heights() -> None:
    low = path(0.1)
    low = replace(low, barrier=np.array([[0.1, 0.3]] * 2), barrier_stderr=np.array([[0.05, 0.01]] * 2))
    runs = [make_run("line", [path(0.4)]), make_run("curve", [replace(low, curve="bezier")])]
    drawn = paper.make_figure(runs, "path")
    assert "along a straight path and a trained Bezier curve between checkpoints" in drawn.caption
    assert "Highest barriers: 0.400 ± 0.013 (train) and 0.300 ± 0.010 (train)." in drawn.caption
    assert r"\cite{frankle2020linear,garipov2018loss} was evaluated at 9 points on 100 samples" in drawn.methods
    assert "garipov2018loss" in drawn.bibtex
    assert "frankle2020linear" in drawn.bibtex
    assert "statistics" not in drawn.methods
    assert len({ax.get_ylim() for ax in drawn.figure.axes}) == 1
    alone = paper.make_figure(runs[:1], "path")
    assert "Bezier" not in alone.caption
    assert "recompute" in paper.make_figure([make_run("bn", [replace(path(), batchnorm="recompute")])], "path").methods


def test_permuted_units_are_told_with_the_barrier_before_and_their_papers() -> None:
    drawn = paper.make_figure([make_run("a", [replace(aligned(), batchnorm="recompute")])], "path")
    assert "Short dashes: the straight path before permuting units." in drawn.caption
    assert (
        "Highest barrier: 0.050 ± 0.013 (train), after permuting the units of each state but the first to fit the one "
        "before it (by weights; before: 0.800 ± 0.013)." in drawn.caption
    )
    assert r"by matching their weights \cite{ainsworth2023git}." in drawn.methods
    assert r"running statistics along it: recompute \cite{jordan2023repair}." in drawn.methods
    assert {"ainsworth2023git", "jordan2023repair", "frankle2020linear"} <= set(
        re.findall(r"^@\w+\{([^,]+),", drawn.bibtex, flags=re.MULTILINE)
    )
    found = paper.make_figure([make_run("a", [replace(aligned(), align="activations")])], "path").methods
    assert r"by matching their activations \cite{ainsworth2023git,jordan2023repair}." in found
    plain = paper.make_figure([make_run("a", [replace(path(), batchnorm="recompute")])], "path")
    assert not re.search("ainsworth|jordan|permut", plain.caption + plain.methods + plain.bibtex)
    assert "recompute." in plain.methods


def test_results_of_no_checkpoint_are_called_as_their_archive(tmp_path: Path) -> None:
    for name in ("linear", "bezier"):
        save_archive(tmp_path / f"{name}.h5", [path()])
    assert [r.name for r in gather([tmp_path / "linear.h5", tmp_path / "bezier.h5"])] == ["linear", "bezier"]


# ------------------------------------------------------------------------------------------------ bad input


def test_what_cannot_be_drawn_is_said() -> None:
    runs = samples.sample_runs(2, points=9)
    for what, options, message in (
        ("trajectory", {}, "no trajectory to draw; these archives have performance, plane, line"),
        ("training", {}, "no training to draw"),
        ("surfac", {}, r"no surfac to draw; .*; did you mean surface\?"),
        ("eigenvalues", {"zlim": (0.0, 1.0)}, "eigenvalues has no zlim"),
        ("surface", {"overlay": True}, "can't be laid over one another"),
    ):
        with pytest.raises(LandscapeError, match=message):
            paper.make_figure(runs, what, **options)
    with pytest.raises(LandscapeError, match="13 panels don't fit"):
        paper.make_figure(samples.sample_runs(13, points=5), "surface")


@pytest.fixture
def archives(tmp_path: Path) -> list[str]:
    return [str(p) for p in samples.write_archives(tmp_path, 2, points=9)]


def call(*arguments: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return CliRunner().invoke(main, ["figure", *arguments])


def test_the_command_writes_figure_words_and_references(archives: list[str], tmp_path: Path) -> None:
    out = tmp_path / "fig.pdf"
    done = call(*archives, "surface", "-o", str(out), "--view", "30,-60", "--zlim", "0,5")
    assert done.exit_code == 0, done.output
    assert out.read_bytes().startswith(b"%PDF")
    assert done.output.split() == [str(out), str(out.with_suffix(".txt")), str(out.with_suffix(".bib"))]
    assert "Caption" in out.with_suffix(".txt").read_text()
    again = call(*archives, "surface", "-o", str(out))
    assert again.exit_code == 1
    assert "exists; choose another name" in again.output
    assert call(*archives, "line", "-o", str(out), "--force", "--no-words").output.split() == [str(out)]
    one = call(*archives, "line", "-o", str(tmp_path / "one.svg"), "--checkpoint", "cross_entropy cosine")
    assert one.exit_code == 0, one.exception


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["surface", "-o", "x.pdf"], "after the archives"),
        (["A", "surface", "-o", "x.doc"], r"must end in one of \.pdf"),
        (["A", "surface", "-o", "nowhere/x.pdf"], "can't be written"),
        (["A", "surface", "-o", "x.pdf", "--view", "30"], "not two numbers"),
        (["A", "surface", "-o", "x.pdf", "--zlim", "0,nan"], "must be finite"),
        (["A", "surface", "-o", "x.pdf", "--checkpoint", "nobody"], "no checkpoint is called nobody; there are"),
        (["missing.h5", "surface", "-o", "x.pdf"], "no archive at missing.h5"),
    ],
)
def test_bad_input_is_one_line(archives: list[str], arguments: list[str], message: str, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*[archives[0] if a == "A" else a for a in arguments])
    assert done.exit_code != 0
    assert re.search(message, done.output)
    assert "Traceback" not in done.output
    assert not list(tmp_path.glob("x*"))
    assert not list(tmp_path.glob(".x*"))


def test_a_running_mean_lies_at_the_middle_of_its_window() -> None:
    ax = new_axes((3, 3))
    steps = np.arange(1001.0)
    _smoothed(ax, steps, 2 * steps, "black", "")
    x, y = (np.asarray(v) for v in ax.get_lines()[1].get_data())
    np.testing.assert_allclose(y, 2 * x, atol=1.0)  # a line is its own mean; half a step where the window is even


def test_the_labels_of_surfaces_in_a_talk_are_not_cut_and_lie_over_no_name() -> None:
    figure = paper.make_figure(samples.sample_runs(6, points=9), "plane", style="talk", view=(30, -60)).figure
    figure.canvas.draw()
    axes: list[Any] = figure.axes
    names = [ax.title.get_window_extent() for ax in axes]
    for ax in axes:
        for label in (ax.xaxis.label, ax.yaxis.label):
            box = label.get_window_extent()
            assert box.y0 >= 0
            assert not any(box.overlaps(name) for name in names)


def test_a_long_name_above_a_small_surface_is_not_cut() -> None:
    runs = [replace(r, name=f"label_smoothing-constant-{i}") for i, r in enumerate(samples.sample_runs(4))]
    drawn = paper.make_figure(runs, "plane", width=6.9, projection="3d", view=(30, -60))
    figure = drawn.figure
    figure.canvas.draw()
    for ax in figure.axes:
        assert "\n" in ax.get_title()
        box = ax.title.get_window_extent()
        assert box.y1 <= figure.bbox.y1
        ticks = [t.get_text() for t in ax.get_xticklabels()]
        assert ticks == ["−0.5", "0.5"]  # three would lie over one another in a panel this small
