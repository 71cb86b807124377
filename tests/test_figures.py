"""`draw` for every kind of result: the numbers drawn are the result's own, with units, uncertainty and holes."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from report_samples import (
    calibration,
    curl,
    eigenvalues,
    line,
    performance,
    plane,
    sample_scores,
    sharpness,
    trace,
)

from landscape.calibration.quantile_heads import quantile_coverage
from landscape.class_measure import score_classes
from landscape.class_scores import ClassScores
from landscape.curvature.estimates import NormEstimate
from landscape.errors import LandscapeError, MeasurementError
from landscape.report.figures import draw, figure, figures
from landscape.report.figures.density import draw_density
from landscape.report.figures.generic import charts
from landscape.report.figures.registry import new_axes, set_height
from landscape.report.figures.self_check import self_check
from landscape.report.palette import HOLE
from landscape.report.runs import make_run
from landscape.report.scales import Scale
from landscape.results import Result, StoredResult, Variable, array

EVERY = {
    "plane": plane,
    "line": line,
    "eigenvalues": eigenvalues,
    "trace": trace,
    "sharpness": sharpness,
    "calibration": calibration,
    "performance": performance,
    "curl": curl,
}


def pixels(ax: Axes) -> np.ndarray:
    """Return the figure's pixels (height, width, 4) as the Agg canvas draws them."""
    canvas = ax.figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def color_at(ax: Axes, x: float, y: float) -> np.ndarray:
    """Return the color drawn at a point of the axes, 0 to 1."""
    picture = pixels(ax)
    column, row = ax.transData.transform((x, y))
    return picture[picture.shape[0] - 1 - round(row), round(column), :3] / 255


# ------------------------------------------------------------------------------------------------ every kind


@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_is_drawn_with_labelled_axes_and_saved(kind):
    ax = draw(EVERY[kind]())
    assert isinstance(ax, Axes)
    assert any(a.get_xlabel() for a in [ax, *ax.child_axes])
    assert ax.get_ylabel() or ax.get_yticklabels()
    for form in ("png", "pdf", "svg"):
        file = io.BytesIO()
        ax.figure.savefig(file, format=form)
        assert file.tell() > 2000


@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        ("plane", "step along d₁"),
        ("line", "step along d"),
        ("calibration", "probability"),
        ("performance", "loss"),
        ("sharpness", "loss"),
        ("curl", "index"),
    ],
)
def test_units_stand_on_the_horizontal_axis(kind, unit):
    ax = draw(EVERY[kind]())
    labels = [a.get_xlabel() for a in [ax, *ax.child_axes]]
    assert any(unit in label for label in labels)


@pytest.mark.parametrize(("kind", "unit"), [("eigenvalues", "loss / parameter²"), ("trace", "loss / parameter²")])
def test_units_stand_on_the_vertical_axis(kind, unit):
    assert unit in draw(EVERY[kind]()).get_ylabel()


@pytest.mark.parametrize("kind", [k for k in EVERY if k != "calibration"])
def test_given_axes_are_used(kind):
    ax = new_axes((4, 3))
    assert draw(EVERY[kind](), ax=ax) is ax


def test_nothing_global_is_touched():
    import matplotlib.pyplot as plt

    before, numbers = dict(mpl.rcParams), plt.get_fignums()
    for make in EVERY.values():
        draw(make())
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == numbers


def test_something_that_is_no_result_is_refused():
    with pytest.raises(TypeError, match="needs a Result, got dict"):
        draw({"loss": 1})


def test_a_style_that_the_drawing_does_not_know_is_refused():
    with pytest.raises(TypeError, match="sparkle"):
        draw(plane(), sparkle=True)


# ------------------------------------------------------------------------------------------------ the numbers


def test_a_line_is_drawn_point_for_point():
    result = line()
    (drawn, center) = draw(result).get_lines()
    np.testing.assert_array_equal(drawn.get_xdata(), result.alpha)
    np.testing.assert_array_equal(drawn.get_ydata(), result.loss)
    assert center.get_ydata()[0] == result.center_loss


def test_a_line_has_gaps_where_it_is_not_finite():
    result = line()
    loss = result.loss.copy()
    loss[3], loss[7] = np.nan, np.inf
    drawn = draw(replace(result, loss=loss)).get_lines()[0].get_ydata()
    assert np.flatnonzero(np.isnan(drawn)).tolist() == [3, 7]


def test_eigenvalues_carry_their_residuals_as_error_bars():
    result = eigenvalues()
    ax = draw(result)
    bars = next(c for c in ax.collections if len(c.get_segments()) == len(result.values)).get_segments()
    for segment, value, residual in zip(bars, result.values, result.residuals, strict=True):
        np.testing.assert_allclose(segment[:, 1], [value - residual, value + residual], rtol=1e-12)


def test_a_pair_that_did_not_converge_is_a_cross_and_is_named():
    ax = draw(eigenvalues())
    crosses = [ln for ln in ax.get_lines() if ln.get_marker() == "x"]
    assert [len(ln.get_xdata()) for ln in crosses] == [1]
    assert any("not converged" in t.get_text() for t in ax.get_legend().get_texts())


def test_reliability_has_the_band_the_bars_and_the_counts():
    result = calibration()
    ax = draw(result)
    filled = result.counts > 0
    band = [p for p in ax.patches if p.get_height() > 0 or p.get_width() > 0]
    np.testing.assert_allclose([(p.get_y(), p.get_y() + p.get_height()) for p in band], result.consistency_band[filled])
    bars = ax.collections[0].get_segments() if ax.collections else []
    np.testing.assert_allclose([s[:, 1] for s in bars], result.accuracy_interval[filled], atol=1e-12)
    (strip,) = ax.child_axes
    assert [p.get_height() for p in strip.patches] == result.counts.tolist()


def test_sharpness_marks_what_a_rescaling_changes():
    ax = draw(sharpness())
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert [("†" in t) for t in labels] == [True, False, True]
    assert "rescaling" in ax.get_xlabel()


def test_shares_of_the_loss_have_an_axis_of_their_own():
    kinds = {"names": ("sam", "average", "keskar"), "units": ("loss", "loss", "%")}
    ax = draw(replace(sharpness(), values=np.array([0.01, 0.02, 4.0]), **kinds))
    (above,) = [a for a in ax.figure.axes if a is not ax]
    assert "% of 1 + loss" in above.get_xlabel()
    assert [ax.lines[0].get_xdata().tolist(), above.lines[0].get_xdata().tolist()] == [[0.01, 0.02], [4.0]]
    assert [t.get_text().split("†")[0] for t in ax.get_yticklabels()][2].startswith("keskar")
    # Zero stands at the same place on both.
    assert ax.transData.transform((0, 0))[0] == pytest.approx(above.transData.transform((0, 0))[0])


def test_densities_in_one_picture_all_keep_their_single_eigenvalues():
    grid = np.linspace(-1, 50, 2000)

    def density(at, sigma, parameters):
        peak = np.exp(-(((grid - at) / sigma) ** 2) / 2) / (parameters * sigma * math.sqrt(2 * math.pi))
        bulk = np.exp(-((grid / 0.3) ** 2) / 2)
        both, facts = peak + bulk, {"sigma": sigma, "parameters": parameters, "operator": "Hessian"}
        return SimpleNamespace(grid=grid, density=both, band=np.stack([both, both], axis=1), **facts)

    wide, narrow = density(47.0, 0.3, 7000), density(2.0, 0.01, 2000)
    for first, second in ((wide, narrow), (narrow, wide)):
        ax = new_axes((4, 3))
        draw_density(first, ax=ax)
        draw_density(second, ax=ax)
        low, high = ax.get_ylim()
        assert low < 0.2 * wide.density[np.argmin(abs(grid - 47))]
        assert high > max(wide.density.max(), narrow.density.max())


def test_a_norm_is_drawn_in_its_own_units():
    rng = np.random.default_rng(0)
    squares = rng.normal(9.0, 1.0, 32)
    norm = NormEstimate(value=3.0, stderr=0.03, samples=squares)
    ax = draw(norm)
    assert ax.get_ylabel() == "Frobenius norm (loss / parameter²)"
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), np.sqrt(squares))


# ------------------------------------------------------------------------------------------------ planes


def test_points_that_are_not_finite_are_holes():
    result = plane()
    loss = result.loss.copy()
    loss[-8:, -8:] = np.nan
    loss[:8, :8] = np.inf
    ax = draw(replace(result, loss=loss))
    for x, y in ((0.9, 0.9), (-0.9, -0.9)):
        np.testing.assert_allclose(color_at(ax, x, y), to_rgb(HOLE), atol=0.01)
    assert np.abs(color_at(ax, 0.9, -0.9) - to_rgb(HOLE)).max() > 0.1


def test_index_order_is_alpha_beta():
    result = plane()
    loss = np.ones_like(result.loss)
    loss[result.alpha > 0.5, :] = 2.0  # right of the picture, top to bottom
    ax = draw(replace(result, loss=loss, center_loss=1.0), scale="linear")
    np.testing.assert_allclose(color_at(ax, 0.9, 0.8), color_at(ax, 0.9, -0.8), atol=0.01)
    assert np.abs(color_at(ax, 0.9, 0.0) - color_at(ax, -0.9, 0.0)).max() > 0.3


def test_a_grid_that_is_not_square_is_drawn():
    assert draw(plane(n=9, m=13)).collections


def test_zlim_gives_two_planes_one_color_scale():
    limits = [draw(plane(s), zlim=(0.01, 6.0)).collections[0].get_clim() for s in (0.5, 6.0)]
    assert limits[0] == limits[1]
    free = [draw(plane(s)).collections[0].get_clim() for s in (0.5, 6.0)]
    assert free[0] != free[1]


def test_a_steep_plane_is_logarithmic_and_says_so():
    assert "logarithmic" in _bar_label(draw(plane(6.0)))
    assert "logarithmic" not in _bar_label(draw(plane(6.0), scale="linear"))


def test_a_loss_below_zero_takes_asinh_and_says_so():
    result = plane(6.0)
    low = replace(result, loss=result.loss - 0.1, center_loss=result.center_loss - 0.1)
    assert "asinh" in _bar_label(draw(low))


def _bar_label(ax: Axes) -> str:
    (bar,) = ax.child_axes
    return bar.get_ylabel()


def test_a_surface_is_drawn_in_three_dimensions_with_its_height_named():
    ax = draw(plane(), projection="3d", view=(20, 40), zlim=(0.01, 5))
    assert ax.name == "3d"
    assert (ax.elev, ax.azim) == (20, 40)
    assert "loss" in ax.get_zlabel()


def test_axes_of_three_dimensions_get_a_surface():
    ax = new_axes((4, 4), projection="3d")
    assert draw(plane(), ax=ax) is ax


def test_accuracy_is_drawn_where_there_are_labels_and_refused_where_not():
    assert "accuracy" in _bar_label(draw(plane(), quantity="accuracy"))
    with pytest.raises(MeasurementError, match="no accuracy"):
        draw(replace(plane(), accuracy=None), quantity="accuracy")


def test_a_flat_plane_is_drawn():
    result = plane()
    ax = draw(replace(result, loss=np.full_like(result.loss, 0.5), center_loss=0.5))
    assert ax.collections
    assert ax.get_xlim() == (result.alpha[0], result.alpha[-1])


# ------------------------------------------------------------------------------------------------ nothing to draw


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (replace(plane(), loss=np.full((25, 25), np.nan)), "no point of this plane is finite"),
        (replace(eigenvalues(), values=np.full(10, np.nan), smallest=np.full(5, np.nan)), "no finite eigenvalue"),
        (replace(trace(), value=np.nan), "not finite"),
        (replace(sharpness(), values=np.full(3, np.nan)), "no sharpness measure is finite"),
        (replace(calibration(), counts=np.zeros(15, dtype=int)), "every bin"),
        (replace(performance(), loss=np.full(2, np.nan)), "no split has a finite loss"),
    ],
)
def test_what_can_not_be_drawn_says_why_in_one_line(result, message):
    with pytest.raises(LandscapeError, match=message) as caught:
        draw(result)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ unknown kinds


def test_an_unknown_kind_with_a_map_is_a_heat_map_over_its_coordinates():
    ax = draw(curl())
    assert ax.get_ylabel() == "time (s)"
    assert ax.get_xlabel() == "layer (index)"
    np.testing.assert_array_equal(ax.collections[0].get_array().reshape(21, 4).T, curl().pairs)


def test_an_unknown_curve_is_drawn_over_its_coordinate_with_its_error_as_a_band():
    result = curl()
    ax = draw(result, variable="curve")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (s)", "curve (nats)\na curve over time")
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), result.curve)
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(result.curve.max() + 1.959964 * 0.05)


def test_what_has_no_coordinate_is_dots_with_bars_and_no_line():
    @dataclass(frozen=True, kw_only=True)
    class Classes(Result, kind=""):
        share: np.ndarray = array("class", units="share", interval="ends", doc="of each class")
        ends: np.ndarray = array("class", "bound", units="share")

    share = np.array([0.5, 0.25, 0.75])
    ends = np.stack([share - [0.1, 0.2, 0.3], share + 0.05], axis=1)
    ax = draw(Classes(share=share, ends=ends))
    dots = ax.lines[0]
    assert dots.get_linestyle() == "None"
    np.testing.assert_array_equal(dots.get_ydata(), share)
    bars = [path.vertices[:, 1] for path in ax.collections[0].get_paths()]
    np.testing.assert_allclose(bars, ends)
    (chart,) = charts(
        "classes",
        [make_run("a", [StoredResult(stored_kind="classes", stored=Classes(share=share, ends=ends).variables())])],
    )
    (trace,) = chart.panels[0].views["all"]
    assert trace["mode"] == "markers"
    assert {"array", "arrayminus"} <= set(trace["error_y"])


def test_shares_that_should_be_what_their_level_says_have_the_diagonal():
    y = np.random.default_rng(0).standard_normal((30, 4))
    made = quantile_coverage(quantiles=y[..., None] * 0 + [-1.0, 0.0, 1.0], targets=y, levels=[0.2, 0.5, 0.8])
    for name in ("frequency", "coverage"):
        diagonal, drawn = draw(made, variable=name).lines
        assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
        np.testing.assert_array_equal(drawn.get_ydata(), getattr(made, name))
    found = {c.id.rpartition("-")[2]: c for c in charts(made.kind, [make_run("a", [made])])}
    traces = {name: c.panels[0].views["all"] for name, c in found.items()}
    assert [name for name, t in traces.items() if t[0].get("y") == [0, 1]] == ["frequency", "coverage"]
    assert len(draw(made, variable="pinball").lines) == 1


def test_what_others_are_computed_from_is_drawn_only_where_it_is_asked_for():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((30, 4))
    made = quantile_coverage(quantiles=y[..., None] * 0 + [-1.0, 0.0, 1.0], targets=y, levels=[0.2, 0.5, 0.8])
    counts = [rng.integers(0, 9, (12, 3)), rng.integers(9, 19, (12, 3)), rng.integers(9, 19, (12, 3))]
    for found, first in ((made, "frequency"), (ClassScores(**score_classes(*counts)), "iou")):
        assert draw(found).get_ylabel().startswith(first)
        shown = [c.id.rpartition("-")[2] for c in charts(found.kind, [make_run("a", [found])])]
        assert first in shown
        assert not {"pull", "held", "block_pinball", "block_weight"} & set(shown)
    assert len(draw(made, variable="block_pinball").lines[0].get_ydata()) == 30


def test_unknown_scalars_are_a_table_with_their_uncertainty():
    stored = {
        "mass": Variable(np.asarray(2.34567), (), "kg", stderr="mass_error"),
        "mass_error": Variable(np.asarray(0.012), (), "kg"),
        "count": Variable(np.asarray(12000), ()),
    }
    ax = draw(StoredResult(stored_kind="later", stored=stored))
    texts = [cell.get_text().get_text() for cell in ax.tables[0].get_celld().values()]
    assert {"2.346 ± 0.012", "kg", "12,000", "mass", "count"} <= set(texts)
    assert "mass_error" not in texts


def test_an_unknown_variable_is_refused_with_the_names_there_are():
    with pytest.raises(MeasurementError, match="has no variable 'nope'; it has total"):
        draw(curl(), variable="nope")


def test_a_result_without_numbers_is_refused():
    with pytest.raises(MeasurementError, match="holds no number"):
        draw(StoredResult(stored_kind="empty"))


def test_one_function_adds_a_figure(monkeypatch):
    from landscape.report.figures import registry

    monkeypatch.setattr(registry, "_FIGURES", dict(figures()))

    @dataclass(frozen=True, kw_only=True)
    class Twist(Result, kind="test_twist"):
        angle: float = array(units="rad")

    @figure("test_twist")
    def draw_twist(result, *, ax=None):
        ax = ax or new_axes((2, 2))
        ax.set_title(f"{result.angle} rad")
        return ax

    assert draw(Twist(angle=0.5)).get_title() == "0.5 rad"


def test_pictures_of_the_loss_say_how_far_they_can_be_trusted():
    whole = plane()
    known = np.zeros(whole.loss.shape, dtype=bool)
    known[::5, ::5] = True
    found = replace(whole, evaluated=known, error=0.007, bend=0.25, status="partial", batchnorm="eval")
    lines = self_check(found)
    assert lines[0].startswith("center ")
    assert "= checkpoint" in lines[0]
    assert "BatchNorm eval" in lines[0]
    assert f"{known.sum()} of {known.size} points evaluated, rest off by ≲ 0.70% of the range" in lines[1]
    assert lines[2] == "PARTIAL · leaves its quadratic model by 25% beside the center"
    assert "IS NOT the checkpoint" in self_check(replace(whole, center_loss=whole.checkpoint_loss * 1.01))[0]
    ax = draw(found, points=True)
    assert any(lines[1] in t.get_text() for t in ax.texts)
    (dots,) = [line for line in ax.lines if line.get_marker() == "."]
    assert len(dots.get_xdata()) == known.sum()
    assert not draw(found, checks=False).texts
    ax.figure.canvas.draw()  # long lines must not narrow the axes
    assert ax.get_window_extent().width > 150


def test_any_quantity_of_a_slice_can_be_drawn_and_unknown_ones_name_what_there_is():
    whole = plane()
    found = replace(whole, held_out_loss=2 * whole.loss, terms=whole.loss[None], term_names=("hinge",))
    for quantity in ("held_out_loss", "hinge"):
        assert draw(found, quantity=quantity) is not None
    with pytest.raises(MeasurementError, match="has no held_out_accuracy: it has loss, accuracy, held_out_loss, hinge"):
        draw(found, quantity="held_out_accuracy")


# ------------------------------------------------------------------------------------------------ logarithmic axes


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.03, 0.9, ["0.03", "0.05", "0.1", "0.3", "0.5"]),  # not 3 × 10⁻²
        (0.0021, 60.0, ["0.01", "0.1", "1", "10"]),  # from three powers of ten on, nothing between them
        (0.8, 2.6, ["1", "1.5", "2", "2.5"]),
        (1e6, 1e20, ["10⁶", "10⁸", "10¹⁰", "10¹²", "10¹⁴", "10¹⁶", "10¹⁸", "10²⁰"]),
    ],
)
def test_a_logarithmic_axis_has_round_numbers_in_words(low: float, high: float, shown: list[str]) -> None:
    ax = new_axes((3.3, 2.2))
    set_height(ax, Scale("log", 1.0, 2.0))
    ax.set_ylim(low, high)  # moved after the scale was set
    ax.figure.draw_without_rendering()
    assert [t.get_text() for t in ax.get_yticklabels()] == shown
    assert not any(t.get_text() for t in ax.get_yticklabels(minor=True))


def test_an_asinh_axis_has_zero_and_round_numbers() -> None:
    ax = new_axes((3.3, 2.2))
    set_height(ax, Scale("asinh", -1.0, 100.0, width=0.1))
    ax.set_ylim(-1.0, 100.0)
    ax.figure.draw_without_rendering()
    texts = [t.get_text() for t in ax.get_yticklabels()]
    assert "0" in texts
    assert "100" in texts
    assert not any("{" in t for t in texts)


# ------------------------------------------------------------------------------------------------ by name


@dataclass(frozen=True, kw_only=True)
class Named(Result, kind="test_named"):
    """Numbers that have names."""

    score: np.ndarray = array("measure", units="loss / parameter^2", stderr="error", doc="in their own units")
    error: np.ndarray = array("measure")
    names: tuple[str, ...] = ()


def test_numbers_with_names_have_a_row_each():
    made = Named(score=np.array([3.0, 1.0, 2.0]), error=np.full(3, 0.1), names=("lambda_max", "trace", "norm"))
    ax = draw(made)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["lambda max", "trace", "norm"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first at the top
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), made.score)
    assert ax.get_xlabel() == "score (loss / parameter²)\nin their own units"


def test_the_scores_of_single_predictions_are_drawn_as_risk_against_coverage():
    scores = sample_scores(n=500)
    ax = draw(scores)
    x, y = ax.lines[0].get_data()
    sure, wrong = np.asarray(scores.confidence), 1 - np.asarray(scores.correct)
    order = np.argsort(-sure)
    np.testing.assert_allclose(y, [wrong[order[: round(n * 500)]].mean() for n in np.asarray(x)], atol=1e-12)
    assert ax.get_ylabel().startswith("risk")


def test_a_table_of_numbers_has_room_for_its_widest():
    ax = new_axes((3.3, 2.2))
    stored = {
        "eigenvalue": Variable(np.asarray(151.2571), (), "loss / parameter^2", stderr="residual"),
        "residual": Variable(np.asarray(0.0016), ()),
        "count": Variable(np.asarray(12), (), "products"),
    }
    draw(StoredResult(stored_kind="later", stored=stored), ax=ax)
    ax.figure.draw_without_rendering()
    for cell in ax.tables[0].get_celld().values():
        box, text = cell.get_window_extent(), cell.get_text().get_window_extent()
        assert box.x0 - 1 <= text.x0
        assert text.x1 <= box.x1 + 1
