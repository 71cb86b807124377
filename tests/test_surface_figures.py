"""Figures of paths, trajectories, eigenvalue maps and basins: the numbers drawn are the results' own."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from report_samples import plane

from landscape import Subject, save_archive
from landscape.errors import MeasurementError
from landscape.report.figures import draw
from landscape.report.figures.basin import basins
from landscape.report.figures.eigenvalue_map import eigenvalue_maps
from landscape.report.figures.path import paths
from landscape.report.figures.plane import inner_ticks
from landscape.report.figures.registry import new_axes
from landscape.report.figures.trajectory import trajectories
from landscape.report.page import render_report
from landscape.report.runs import gather, make_run, unique
from landscape.surface.fields import Basin, EigenvalueMap
from landscape.surface.routes import Path, Trajectory
from landscape.surface.slices import Plane


def path(height: float = 0.4, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Return two segments with a barrier half way along each."""
    at = np.linspace(0, 2, 9)
    excess = height * np.sin(np.pi * at) ** 2
    loss = np.array([0.1 + 0.05 * i + excess for i in range(len(splits))])
    table = np.full((len(splits), 2), height)
    return Path(
        position=at,
        loss=loss,
        loss_stderr=0.02 + 0 * loss,
        accuracy=np.exp(-loss),
        accuracy_stderr=0.01 + 0 * loss,
        excess=np.array([excess] * len(splits)),
        excess_stderr=0.01 + 0 * loss,
        barrier=table,
        barrier_stderr=0.013 + 0 * table,
        barrier_at=np.array([[0.5, 1.5]] * len(splits)),
        instability=table,
        own_loss=loss[:, ::4],
        distance=np.array([3.0, 4.0]),
        samples=np.array([100] * len(splits)),
        splits=splits,
        states=("a", "b", "c"),
    )


def aligned(splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Return that path with lower barriers, and itself as it was before units were permuted."""
    before, after = path(0.8, splits), path(0.05, splits)
    table = np.array([2, 2])
    return replace(
        after,
        align="weights",
        groups=table,
        units=8 * table,
        moved=7 * table,
        unaligned_loss=before.loss,
        unaligned_barrier=before.barrier,
        unaligned_barrier_stderr=before.barrier_stderr,
        unaligned_distance=2 * before.distance,
    )


LABELS = ("principal axis 1", "principal axis 2")


def trajectory(count: int = 12) -> Trajectory:
    """Return a way that curves towards the last checkpoint, off its plane in the middle."""
    s = np.linspace(1, 0, count)
    coordinates = np.column_stack([0.8 * s, 0.6 * s * (1 - s)])
    loss = 0.05 + 2 * s**2
    return Trajectory(
        step=10 * np.arange(count),
        coordinates=coordinates,
        distance=s,
        off_plane=0.2 * s * (1 - s),
        loss=loss,
        loss_stderr=0.05 * loss,
        plane_loss=loss - 0.1 * s,
        gap=-0.1 * s,
        gap_stderr=0.01 * s,
        share=np.array([0.9, 0.06, 0.04]),
        captured=0.97,
        direction_norms=np.array([1.0, 1.0]),
        cosine=0.0,
        labels=LABELS,
        fingerprint="f" * 64,
        settings={"steps": "as in the files"},
    )


def below() -> Plane:
    """Return the plane under that trajectory."""
    return replace(plane(n=9), directions=LABELS, direction_norms=np.array([1.0, 1.0]), cosine=0.0)


def eigenvalue_map(n: int = 5, m: int = 4) -> EigenvalueMap:
    a, b = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, m), indexing="ij")
    largest, smallest = 10 + a, -(a**2 + b**2)
    largest[0, 0] = np.nan
    return EigenvalueMap(
        alpha=a[:, 0],
        beta=b[0],
        largest=largest,
        smallest=smallest,
        largest_residual=0.01 + 0 * a,
        smallest_residual=0.01 + 0 * a,
        converged=a < 0.9,
        products=np.full(a.shape, 15),
        direction_norms=np.array([1.0, 1.0]),
    )


def basin(sharp: float = 1.0) -> Basin:
    step = np.linspace(-1, 1, 21)
    bends = sharp * np.array([1.0, 2.0, 3.0])
    radius = np.sqrt(np.array([0.1, 1.0])[None, None, :] / bends[:, None, None]) * np.ones((3, 2, 2))
    two = np.array([1.0, 2.0])
    return Basin(
        ray=np.arange(3),
        rise=np.array([0.1, 1.0]),
        step=step,
        loss=0.2 + bends[:, None] * step**2,
        radius=radius,
        width=radius.sum(axis=1).mean(axis=0),
        width_stderr=0.01 * two,
        width_spread=0.02 * two,
        log_volume=two,
        log_volume_stderr=two,
        log_volume_bound=two,
        log_volume_bound_stderr=two,
        effective_rays=two,
        roughness=0.01,
        roughness_stderr=0.002,
        roughness_spread=0.004,
        line_roughness=np.zeros(3),
        normalized_variation=np.full(3, 2.0),
        extremes=np.ones(3),
        dimensions=100,
    )


EVERY = {"path": path, "trajectory": trajectory, "eigenvalue_map": eigenvalue_map, "basin": basin}


def words(ax: Axes) -> str:
    """Return every text of the figure's main axes."""
    found = [ax.get_xlabel(), ax.get_ylabel(), *(t.get_text() for t in ax.texts)]
    legend = ax.get_legend()
    return " | ".join([*found, *(t.get_text() for t in legend.get_texts())] if legend else found)


# ----------------------------------------------------------------------------------------------------- on paper


@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_is_drawn_with_labelled_axes_and_saved(kind):
    own = new_axes((4, 3))
    ax = draw(EVERY[kind](), ax=own)
    assert ax is own
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    for form in ("png", "pdf", "svg"):
        file = io.BytesIO()
        draw(EVERY[kind]()).figure.savefig(file, format=form)
        assert file.tell() > 2000


def test_a_path_shows_its_barriers_where_they_are():
    result = path()
    ax = draw(result)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), result.loss[0])
    assert words(ax).count("barrier 0.400 ± 0.013") == 2
    arrows = [t for t in ax.texts if t.arrow_patch is not None and not t.get_text()]
    assert [t.xy for t in arrows] == [(0.5, pytest.approx(0.5)), (1.5, pytest.approx(0.5))]
    assert [t.get_position()[1] for t in arrows] == pytest.approx([0.1, 0.1])
    assert "barrier" not in words(draw(path(0.0)))
    assert "accuracy" in draw(result, quantity="accuracy").get_ylabel()
    with pytest.raises(MeasurementError, match="no accuracy"):
        draw(replace(result, accuracy=None), quantity="accuracy")


@pytest.mark.parametrize("splits", [("train",), ("train", "test")])
def test_a_path_of_permuted_units_shows_the_one_before(splits):
    result = aligned(splits)
    ax = draw(result, scale="log")
    dashed = [line for line in ax.lines if line.is_dashed()]
    for loss in result.unaligned_loss:
        assert any(np.array_equal(line.get_ydata(), loss) for line in dashed)
    assert "before permuting units" in words(ax)
    assert ax.get_ylim()[1] > result.unaligned_loss.max()
    # Barriers too small for a text beside them have it above, on the axes.
    texts = [t for t in ax.texts if t.get_text().startswith("barrier")]
    assert [t.get_rotation() for t in texts] == [0, 0]
    assert "before permuting units" not in words(draw(result, quantity="accuracy"))
    assert len(draw(path(splits=splits)).lines) < len(ax.lines)


def test_a_trajectory_lies_over_its_contour_and_over_no_other():
    result = trajectory()
    ax = draw(result, surface=below(), fingerprint="f" * 64)
    way = next(line for line in ax.lines if len(line.get_xdata()) == 12)
    np.testing.assert_array_equal(np.column_stack(way.get_data()), result.coordinates)
    assert "90.0% of the variance" in ax.get_xlabel()
    assert {"first", "last"} <= set(words(ax).split(" | "))
    with pytest.raises(MeasurementError, match="another model"):
        draw(result, surface=below(), fingerprint="0" * 64)
    with pytest.raises(MeasurementError, match="was projected onto"):
        draw(result, surface=plane(n=5))
    with pytest.raises(TypeError, match="give surface="):
        draw(result, levels=3)


def test_the_color_bar_is_as_high_as_a_flat_plane():
    whole = plane(n=9)
    ax = draw(replace(whole, beta=whole.beta / 4))
    ax.figure.canvas.draw()
    (bar,) = ax.child_axes
    outer, inner = ax.get_window_extent(), bar.get_window_extent()
    assert outer.height == pytest.approx(outer.width / 4, rel=1e-6)
    assert outer.y0 <= inner.y0 < inner.y1 <= outer.y1
    assert inner.height == pytest.approx(0.86 * outer.height, rel=1e-6)
    assert inner.x0 > outer.x1


def test_a_trajectorys_losses_stand_beside_the_planes():
    result = trajectory()
    ax = draw(result, view="loss")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), result.loss)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), result.plane_loss)
    assert ax.get_xlabel() == "training step"
    assert draw(replace(result, settings={}), view="loss").get_xlabel() == "checkpoint"
    with pytest.raises(MeasurementError, match="no losses"):
        draw(replace(result, loss=None), view="loss")


def test_an_eigenvalue_map_marks_what_has_not_converged_and_leaves_holes():
    result = eigenvalue_map()
    ax = draw(result)
    mesh = ax.collections[0]
    np.testing.assert_allclose(np.ma.filled(mesh.get_array(), np.nan), result.ratio.T)
    assert mesh.get_clim() == (0, pytest.approx(np.nanmax(result.ratio)))
    crosses = next(line for line in ax.lines if line.get_marker() == "x")
    assert len(crosses.get_xdata()) == 4
    assert "λ max" in draw(result, quantity="largest").child_axes[0].get_ylabel()
    row = draw(replace(result, beta=result.beta[:1], **{
        k: getattr(result, k)[:, :1] for k in ("largest", "smallest", "largest_residual", "smallest_residual",
                                               "converged", "products")}))  # fmt: skip
    assert row.get_ylabel() == "|λ min / λ max|"
    with pytest.raises(MeasurementError, match="no point"):
        draw(replace(result, largest=np.full((5, 4), np.nan)))


def test_a_basin_shows_every_line_and_where_it_rises():
    result = basin()
    ax = draw(result)
    assert "rise 0.1: width" in words(ax)
    marks = [line for line in ax.lines if line.get_linestyle() == "None"]
    np.testing.assert_allclose(
        np.sort(marks[0].get_xdata()), np.sort(np.concatenate([-result.radius[:, 0, 0], result.radius[:, 1, 0]]))
    )
    assert (marks[1].get_ydata() == 1.0).all()
    empty = replace(result, width=np.array([np.nan, 1.0]), width_stderr=np.array([np.nan, 0.1]))
    assert "rise 0.1: not reached" in words(draw(empty))


def test_holes_everywhere_are_no_picture():
    with pytest.raises(MeasurementError, match="nothing to draw"):
        draw(replace(basin(), loss=np.full((3, 21), np.nan)))


# ----------------------------------------------------------------------------------------------------- the page


def two(make: Any, **other: Any) -> list:
    return unique([make_run("a", [make()]), make_run("b", [make(**other)]), make_run("c", [plane(n=4)])])


@pytest.mark.parametrize(
    ("chart", "make"),
    [(paths, path), (trajectories, trajectory), (eigenvalue_maps, eigenvalue_map), (basins, basin)],
)
def test_each_run_with_numbers_has_a_panel(chart, make):
    made = chart(two(make))
    assert [p.title for p in made.panels] == ["a", "b"]
    assert made.view in made.layouts
    for p in made.panels:
        assert p.views[made.view]
        assert p.lines
    assert made.json()
    assert chart([make_run("c", [plane(n=4)])]) is None


def test_the_page_draws_the_contour_that_belongs_to_the_trajectory():
    surfaces = [plane(n=5), below(), plane(n=6)]
    (run,) = unique([make_run("a", [trajectory(), *surfaces], fingerprint="f" * 64)])
    chart = trajectories([run])
    assert chart.panels[0].views[chart.view][0]["type"] == "contour"
    np.testing.assert_array_equal(chart.series[1].columns["loss"], below().loss)
    assert chart.notes == ()
    (other,) = unique([make_run("a", [trajectory(), *surfaces], fingerprint="0" * 64)])
    chart = trajectories([other])
    assert all(t["type"] != "contour" for t in chart.panels[0].views[chart.view])
    assert "another model" in chart.notes[0]


def test_a_path_without_a_barrier_says_so():
    assert paths(two(path, height=0.0)).panels[1].lines[0] == "train: barrier none, none"
    assert "± 0.013" in paths(two(path)).panels[0].lines[0]


def test_the_page_shows_the_path_before_units_were_permuted():
    chart = paths(two(aligned))
    assert chart.panels[0].lines == (
        "train: barrier 0.050 ± 0.013, 0.050 ± 0.013",
        "test: barrier 0.050 ± 0.013, 0.050 ± 0.013",
        "units of each state but the first permuted to fit the one before it, by weights",
        "train: barrier before permuting units 0.800 ± 0.013, 0.800 ± 0.013",
        "test: barrier before permuting units 0.800 ± 0.013, 0.800 ± 0.013",
    )
    np.testing.assert_array_equal(chart.series[1].columns["unaligned_loss"], aligned().unaligned_loss[1])
    drawn = [t["y"] for t in chart.panels[0].views["linear"] if t.get("mode") == "lines" and "ref" in t["y"]]
    assert [y["ref"] for y in drawn] == [[0, "loss"], [0, "unaligned_loss"], [1, "loss"], [1, "unaligned_loss"]]
    assert "Short dashes: before permuting units." in chart.caption
    assert any(t.get("text") == ["before permuting units"] for t in chart.panels[0].views["linear"])
    plain = paths(two(path))
    assert "permuting" not in plain.caption
    assert not any("permut" in line for line in plain.panels[0].lines)


def test_the_report_has_their_sections(tmp_path):
    save_archive(
        tmp_path / "run.h5",
        [path(), trajectory(), below(), eigenvalue_map(), basin()],
        subject=Subject(name="one", fingerprint="f" * 64),
    )
    html = render_report(gather([tmp_path / "run.h5"]))
    for title in ("Trajectories and paths", "Around the weights"):
        assert title in html
    for name in ("paths", "trajectories", "eigenvalue-maps", "basins"):
        assert f'id="figure-{name}"' in html
    assert "Other measurements" not in html


def test_the_checkpoint_is_marked_in_front_of_the_surface() -> None:
    made = plane()
    ax: Any = draw(made, projection="3d", scale="linear")
    marks = [line for line in ax.get_lines() if line.get_marker() == "+"]
    assert [np.ravel(v).tolist() for v in marks[-1].get_data_3d()] == [[0], [0], [made.center_loss]]
    assert not ax.computed_zorder  # by its depth, the wall before it would hide it
    assert marks[-1].get_zorder() > max(c.get_zorder() for c in ax.collections)


@pytest.mark.parametrize(("ends", "expected"), [((-1, 1), [-0.5, 0, 0.5]), ((0, 4), [1, 2, 3])])
def test_no_tick_stands_in_a_corner_of_a_surface(ends: tuple[float, float], expected: list[float]) -> None:
    assert inner_ticks(ends) == expected
