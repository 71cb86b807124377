"""Diagonal blocks of operators: each layer's matrix, and its largest eigenvalue, against the dense Hessian."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Fisher, GaussNewton, Hessian, Task, draw, layer_curvature
from landscape.curvature.measure import measure_eigenvalues
from landscape.curvature.spectrum import LayerCurvature
from landscape.errors import MeasurementError
from landscape.report.figures.layers import layer_rows
from landscape.report.methods import methods
from landscape.report.runs import make_run
from landscape.report.sections import build_sections

# float64 sums in another order.
EXACT = 1e-10


class Named(nn.Module):
    """Layers of which one's name is the beginning of another's, and a parameter held by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.layer2 = nn.Linear(4, 5), nn.Linear(5, 3)
        self.layer.inner = nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.layer2(torch.tanh(self.layer.inner(torch.tanh(self.layer(x)))))


@pytest.fixture(scope="module")
def task() -> Task:
    torch.manual_seed(0)
    x = torch.randn(31, 4, generator=torch.Generator().manual_seed(1)).double()
    return Task(Named().double(), nn.CrossEntropyLoss(), (x, torch.arange(31) % 3), batch_size=12)


def matrix(operator) -> torch.Tensor:
    with operator as a:
        return a @ torch.eye(a.shape[0], dtype=a.dtype)


LAYERS = {"scale": ["scale"], "layer": ["layer.weight", "layer.bias"], "layer2": ["layer2.weight", "layer2.bias"]}


@pytest.mark.parametrize("kind", [Hessian, GaussNewton, Fisher])
def test_blocks_are_those_of_the_whole_matrix(task, kind):
    whole = kind(task)
    dense, start, where = matrix(whole), 0, {}
    for name in whole.names:
        where[name] = range(start, start + whole._sizes[name])
        start += whole._sizes[name]
    blocks = whole.blocks()
    assert list(blocks) == ["scale", "layer", "layer.inner", "layer2"]
    for block in blocks.values():
        rows = [i for name in block.names for i in where[name]]
        expected = dense[rows][:, rows]
        assert (matrix(block) - expected).abs().max() <= EXACT * dense.abs().max()
    assert list(blocks["layer"].names) == LAYERS["layer"]
    assert list(whole.blocks("tensor")) == list(whole.names)
    assert set(whole.restricted("layer").names) == {n for n in whole.names if n.startswith("layer.")}


def test_the_largest_eigenvalue_of_each_layer(task):
    found = layer_curvature(Hessian(task), tol=1e-6)
    for name, value in zip(found.names, found.largest, strict=True):
        dense = matrix(Hessian(task).blocks()[name])
        assert value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-9)
    assert found.whole == pytest.approx(float(torch.linalg.eigvalsh(matrix(Hessian(task)))[-1]), rel=1e-9)
    assert found.largest.max() <= found.whole * (1 + EXACT)
    assert found.sizes.tolist() == [3, 25, 30, 18]
    assert found.status == "complete"
    assert found.converged.all()
    assert found.cost.products == found.products > 4


def test_what_a_blocks_own_checks_doubt_is_passed_on(task):
    class Skewed(Hessian):
        def __matmul__(self, v):
            return super().__matmul__(v) + 0.1 * torch.roll(v, 1, dims=0)

    assert [c.level for c in layer_curvature(Hessian(task)).checks] == ["pass"]
    found = layer_curvature(Skewed(task))
    assert {c.name: c.level for c in found.checks}["symmetry"] == "fail"
    assert any(w.startswith("scale: the operator is not symmetric") for w in found.warnings)


def layered() -> LayerCurvature:
    return LayerCurvature(
        largest=np.array([300.0, 0.5, -2.0]),
        residuals=np.array([1.0, 0.01, 0.1]),
        converged=np.ones(3, bool),
        sizes=np.array([3, 2, 1]),
        whole=310.0,
        names=("first", "second", "third"),
    )


def test_layers_are_drawn_in_the_models_order_on_a_log_axis():
    ax = draw(layered())
    assert [t.get_text() for t in ax.get_yticklabels()] == ["first", "second", "third"]
    assert ax.get_xscale() == "log"
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first at the top
    (points,) = (line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() == "o")
    assert list(points.get_xdata()) == [300.0, 0.5]  # what is not positive has no place
    with pytest.raises(MeasurementError, match="no layer's largest eigenvalue is positive"):
        draw(replace(layered(), largest=-layered().largest.clip(0)))


def test_layers_stand_in_the_reports_curvature_section():
    run = make_run("<b>", [layered()])
    chart = layer_rows([run])
    assert chart is not None
    assert list(chart.layouts) == ["log", "linear"]
    assert chart.layouts["log"]["xaxis"]["type"] == "log"
    assert chart.series[0].columns["eigenvalue"].tolist() == [300.0, 0.5, -2.0]
    assert layer_rows([make_run("none", [])]) is None
    assert [s.title for s in build_sections([run]) if s.id in ("curvature", "other")] == ["Curvature"]


def test_a_methods_paragraph_holds_settings_but_not_how_the_products_were_made(task):
    found = layer_curvature(Hessian(task), tol=0.05)
    text = methods([(make_run("a", [found]), found)])
    assert "Settings: by layer, tol 0.05, seed 0." in text
    assert "graphs" not in text
    assert "graphs" in found.settings["strategy"]


def test_selected_parameters_and_other_operators_from_the_command_line(task):
    part = measure_eigenvalues(task, k=1, which="largest", parameters="layer2+scale", operator="gauss-newton", tol=1e-6)
    dense = matrix(GaussNewton(task, ["layer2", "scale"]))
    assert part.values[0] == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-9)
    assert part.operator == "Gauss-Newton"
    assert part.parameters == 21


def test_second_opinions_have_the_same_form(task):
    ours = measure_eigenvalues(task, k=2, which="magnitude", tol=1e-6)
    for method in ("arpack", "pyhessian"):
        theirs = measure_eigenvalues(task, k=2, which="magnitude", tol=1e-6, method=method)
        # PyHessian stops when two iterates agree to its tolerance, which bounds no error: a percent is what it reaches.
        assert theirs.values == pytest.approx(ours.values, rel=1e-2 if method == "pyhessian" else 1e-6)
        assert theirs.settings["method"] == method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operator": "jacobian"}, "choose from hessian, gauss-newton, fisher"),
        ({"parameters": "layer9"}, "lies under 'layer9'"),
        ({"method": "power"}, "choose from lanczos, arpack, pyhessian"),
        ({"method": "pyhessian"}, "give which='magnitude'"),
    ],
)
def test_bad_options(task, options, message):
    with pytest.raises(MeasurementError, match=message):
        measure_eigenvalues(task, k=1, **options)


def test_other_ways_of_cutting_and_other_operators_are_refused(task):
    with pytest.raises(MeasurementError, match="by='filter' is unknown; choose from layer, tensor"):
        Hessian(task).blocks("filter")
    with pytest.raises(MeasurementError, match="such as Hessian"):
        layer_curvature(torch.eye(3))
