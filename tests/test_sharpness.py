"""Sharpness against closed forms on quadratics, and its behaviour under a rescaling of ReLU layers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from landscape import Objective, Task, measurements, sharpness
from landscape.curvature.logits import with_normalized_logits
from landscape.curvature.sharpness import DEFAULT, KINDS
from landscape.errors import MeasurementError


def regression(n: int = 40) -> tuple[Task, torch.Tensor, torch.Tensor]:
    """Return a quadratic task with its Hessian and gradient at the weights."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=g).double() * torch.tensor([3.0, 1.0, 1.0, 0.5])
    y = torch.randn(n, 1, generator=g).double()
    torch.manual_seed(1)
    model = nn.Linear(4, 1, bias=False).double()
    hessian = 2 * x.T @ x / n
    gradient = (2 * x.T @ (x @ model.weight.detach().T - y) / n)[:, 0]
    return Task(model, nn.MSELoss(), (x, y)), hessian, gradient


def trust_region(hessian: np.ndarray, gradient: np.ndarray, rho: float) -> float:
    """Return max over ||e|| <= rho of g.e + e'He/2: e = (mu - H)^-1 g with ||e|| = rho and mu > lambda_max."""
    values, vectors = np.linalg.eigh(hessian)
    c = vectors.T @ gradient
    mu = brentq(lambda m: np.linalg.norm(c / (m - values)) - rho, values[-1] + 1e-9, values[-1] + 1e6)
    e = c / (mu - values)
    return float(c @ e + 0.5 * (values * e * e).sum())


def rescalable() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()


def labelled(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=g).double(), torch.randint(3, (n,), generator=g)


class TestClosedForms:
    @pytest.mark.parametrize("rho", [0.05, 0.5, 5.0])
    def test_worst_case_of_a_quadratic_is_the_trust_region_maximum(self, rho):
        task, hessian, gradient = regression()
        found = sharpness(task, "sam", rho=rho, batch=1000, steps=300)
        assert found.values[0] == pytest.approx(trust_region(hessian.numpy(), gradient.numpy(), rho), rel=1e-6)

    def test_adaptive_is_that_of_the_scaled_quadratic(self):
        task, hessian, gradient = regression()
        d = task.model.weight.detach().abs()[0]
        expected = trust_region((d[:, None] * hessian * d).numpy(), (d * gradient).numpy(), 0.5)
        assert sharpness(task, "adaptive", rho=0.5, batch=1000, steps=300).values[0] == pytest.approx(
            expected, rel=1e-6
        )

    def test_average_of_a_quadratic_is_half_the_trace(self):
        task, hessian, _ = regression()
        found = sharpness(task, "average", rho=0.1, draws=400)
        assert abs(found.values[0] - 0.005 * hessian.trace().item()) <= 4 * found.stderr[0]
        assert found.stderr[0] < 0.2 * found.values[0]

    def test_the_average_of_a_ball_is_half_its_dimension(self):
        """0.5 ||w||^2 at 0, in 10,000 dimensions: rho^2 n / 2, and one draw errs by sqrt(2 / n) of it, 20 by 0.3%."""
        model = nn.Linear(10_000, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        x = torch.zeros(1, 10_000).double()
        task = Task(model, lambda z, y: z.mean() + 0.5 * model.weight.square().sum(), (x, torch.zeros(1, 1).double()))
        found = sharpness(task, "average", rho=0.2, draws=20)
        assert found.values[0] == pytest.approx(0.2**2 * 10_000 / 2, rel=0.015)

    def test_m_sharpness_is_the_mean_of_the_batches_own_worst_cases(self):
        task, _, _ = regression(40)
        with Objective(task, regroup=20) as objective:
            batches = [objective.batch(i) for i in range(len(objective))]
        assert torch.equal(torch.cat([x for x, _ in batches]).sort(0).values, task.train[0].sort(0).values)
        expected = []
        for x, y in batches:
            h = 2 * x.T @ x / 20
            g = (2 * x.T @ (x @ task.model.weight.detach().T - y) / 20)[:, 0]
            expected.append(trust_region(h.numpy(), g.numpy(), 0.3))
        found = sharpness(task, "sam", rho=0.3, batch=20, steps=300)
        assert found.values[0] == pytest.approx(np.mean(expected), rel=1e-6)
        assert found.stderr[0] == pytest.approx(np.std(expected, ddof=1) / np.sqrt(2), rel=1e-6)

    def test_at_a_stationary_point_the_worst_case_is_half_rho_squared_lambda_max(self):
        x = torch.diag(torch.tensor([3.0, 1.0, 1.0])).double()
        model = nn.Linear(3, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        task = Task(model, nn.MSELoss(), (x, torch.zeros(3, 1).double()))
        found = sharpness(task, "sam", rho=0.2, batch=100, steps=100)
        assert found.values[0] == pytest.approx(0.5 * 0.04 * 2 * 9 / 3, rel=1e-8)

    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_the_largest_rise_seen_is_kept(self, steps):
        """L(w) = -(w - 0.3)^2 at 0: the first step of 0.5 rises by 0.05, the next one goes to -0.5, where it falls."""
        model = nn.Linear(1, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        one = torch.ones(1, 1).double()
        found = sharpness(Task(model, lambda z, y: -(z - 0.3).square().mean(), (one, one)), rho=0.5, steps=steps)
        assert found.values[0] == pytest.approx(0.09 - 0.04, rel=1e-12)

    def test_asam_measures_weights_by_their_size_and_biases_by_one(self):
        x, y = labelled(40)[0], labelled(40)[0][:, :1]
        torch.manual_seed(1)
        model = nn.Linear(4, 1).double()
        ones = torch.cat([x, torch.ones(40, 1).double()], dim=1)
        w = torch.cat([model.weight.detach()[0], model.bias.detach()])
        hessian, gradient = 2 * ones.T @ ones / 40, 2 * ones.T @ (ones @ w - y[:, 0]) / 40
        t = torch.cat([model.weight.detach()[0].abs() + 0.01, torch.ones(1)])
        expected = trust_region((t[:, None] * hessian * t).numpy(), (t * gradient).numpy(), 0.5)
        found = sharpness(Task(model, nn.MSELoss(), (x, y)), "asam", rho=0.5, batch=1000, steps=300)
        assert found.values[0] == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("kind", ["keskar", "keskar_5e-4"])
    def test_keskar_of_a_quadratic_is_the_best_corner_of_the_box(self, kind):
        """A convex function is largest in a corner; the gradient is not small here, so that there is one maximum."""
        task, hessian, gradient = regression()
        w = task.model.weight.detach()[0]
        x, y = task.train
        loss = float((x @ w - y[:, 0]).square().mean())
        eps = {"keskar": 1e-3, "keskar_5e-4": 5e-4}[kind]
        corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4))).double() * eps * (w.abs() + 1)
        rise = max(float(gradient @ e + 0.5 * e @ hessian @ e) for e in corners)
        found = sharpness(task, kind)
        assert found.values[0] == pytest.approx(100 * rise / (1 + loss), rel=1e-9)
        assert found.units == ("%",)
        assert np.isnan(found.stderr[0])
        assert found.rho[0] == eps

    def test_keskar_near_a_minimum_and_at_one(self):
        """Gradients of 1e-9 and of 0: the search must still leave the weights, to a rise like the best corner's."""
        task, hessian, _ = regression()
        x, _ = task.train
        w = task.model.weight.detach()[0]
        corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4))).double() * 1e-3 * (w.abs() + 1)
        rise = max(float(0.5 * e @ hessian @ e) for e in corners)
        for off in (1e-9, 0.0):
            y = (x @ w)[:, None] + off * x[:, :1]
            found = sharpness(Task(task.model, nn.MSELoss(), (x, y)), "keskar")
            assert 0.5 * 100 * rise < found.values[0] <= 100 * rise * (1 + 1e-5)

    def test_without_a_batch_size_there_is_one_maximum_for_all_samples(self):
        task, hessian, gradient = regression(40)
        several = task.replace(batch_size=9)
        found = sharpness(several, "sam", rho=0.3, batch=None, steps=300)
        assert found.values[0] == pytest.approx(trust_region(hessian.numpy(), gradient.numpy(), 0.3), rel=1e-6)
        assert np.isnan(found.stderr[0])
        assert found.settings["batch"] is None


class TestRescaling:
    @pytest.mark.parametrize("kind", list(KINDS))
    def test_the_mark_says_whether_a_rescaling_of_relu_layers_changes_it(self, kind):
        values = []
        for factor in (1.0, 10.0):
            model = rescalable()
            with torch.no_grad():
                model[0].weight.mul_(factor)
                model[2].weight.div_(factor)
            found = sharpness(Task(model, nn.CrossEntropyLoss(), labelled()), kind, rho=0.05)
            values.append(found.values[0])
        changed = abs(values[1] / values[0] - 1) > 0.05
        assert changed == bool(found.rescaling[0])

    def test_normalized_logits_take_out_the_scale_of_the_last_layer(self):
        values = []
        for factor in (1.0, 10.0):
            model = rescalable()
            with torch.no_grad():
                model[2].weight.mul_(factor)
            task = Task(model, nn.CrossEntropyLoss(), labelled())
            values.append(
                [
                    sharpness(task, "average_adaptive", rho=0.05, normalize_logits=normalize).values[0]
                    for normalize in (False, True)
                ]
            )
        assert abs(values[1][0]) > 2 * abs(values[0][0])
        assert values[1][1] == pytest.approx(values[0][1], rel=1e-9)

    def test_normalized_logits_are_those_of_the_paper(self):
        x, y = labelled()
        z = rescalable()(x).detach()
        z = z - z.mean(dim=1, keepdim=True)
        expected = nn.functional.cross_entropy(z / z.norm(dim=1, keepdim=True).clamp_min(1e-10), y).item()
        for form in ("tensor", "dict"):
            forward = None if form == "tensor" else lambda model, batch: ({"logits": model(batch[0])}, batch[1])
            loss = (
                nn.CrossEntropyLoss()
                if form == "tensor"
                else lambda out, t: nn.functional.cross_entropy(out["logits"], t)
            )
            with Objective(with_normalized_logits(Task(rescalable(), loss, (x, y), forward=forward))) as objective:
                assert objective.evaluate().loss == pytest.approx(expected, rel=1e-12)


class TestUse:
    def test_the_measurement_gives_all_kinds_with_seeds_that_repeat(self):
        task = Task(rescalable(), nn.CrossEntropyLoss(), labelled())
        a, b, c = (sharpness(task, tuple(KINDS), steps=3, draws=5, batch=16, seed=s) for s in (0, 0, 1))
        assert a.names == tuple(KINDS)
        assert (a.values == b.values).all()
        assert np.array_equal(a.stderr, b.stderr, equal_nan=True)
        assert a.values[3] != c.values[3]
        assert set(a.summary()["sam"]) >= {"value", "stderr", "rho"}
        assert (a.values[:3] > 0).all()

    @pytest.mark.parametrize("most", [None, 50, 8])
    def test_as_many_samples_are_drawn_as_were_asked_for(self, most):
        task = Task(rescalable(), nn.CrossEntropyLoss(), labelled(), max_samples=most)
        found = sharpness(task, "average", samples=12, draws=2)
        assert found.settings["samples"] == min(12, most or 64)
        assert found.values == sharpness(task.replace(max_samples=min(12, most or 64)), "average", draws=2).values

    def test_several_kinds_radii_and_the_command_lines_text(self):
        task = Task(rescalable(), nn.CrossEntropyLoss(), labelled())
        found = sharpness(task, "sam, keskar", rho={"sam": 0.2}, steps=3)
        assert found.names == ("sam", "keskar")
        assert found.rho.tolist() == [0.2, 1e-3]
        with Objective(task) as objective:
            again = sharpness(objective, ("sam", "keskar"), rho={"sam": 0.2}, steps=3)
        assert again.values == pytest.approx(found.values, rel=1e-12)

    def test_the_command_line_reaches_every_setting(self, tmp_path, monkeypatch):
        import small_world

        monkeypatch.chdir(tmp_path)
        small_world.build(tmp_path)
        given = {"kind": "sam,asam", "rho": 0.2, "batch": "none", "steps": 3, "normalize_logits": "true"}
        options = [part for k, v in given.items() for part in ("--option", f"sharpness.{k}={v}")]
        (shown,) = small_world.results("tiny.pt", "--only", "sharpness", *options)
        assert list(shown["sharpness"]) == ["sam", "asam"]
        assert shown["sharpness"]["asam"]["rho"] == 0.2
        assert set(measurements()["sharpness"].options) >= set(given)
        assert measurements()["sharpness"].options["kind"].default == DEFAULT

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"kind": "flat"}, "not one of sam"),
            ({"kind": ()}, "not one of sam"),
            ({"rho": -1.0}, "positive"),
            ({"rho": {"flat": 1.0}}, "rho names 'flat'"),
            ({"steps": 0}, "steps=0"),
            ({"batch": 0}, "batch=0"),
        ],
    )
    def test_bad_arguments(self, arguments, said):
        with pytest.raises(MeasurementError, match=said):
            sharpness(Task(rescalable(), nn.CrossEntropyLoss(), labelled()), **arguments)


class Rooted(nn.Module):
    """Adds the norm of its weights, which has no slope at 0: autograd's is NaN."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((2,), start).double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.w.square().sum().sqrt()


class TestSlopes:
    @pytest.mark.parametrize("kind", ["sam", "adaptive", "keskar"])
    def test_a_gradient_that_is_not_finite_is_no_infinite_loss(self, kind):
        x = torch.ones(8, 1).double()
        with pytest.raises(
            MeasurementError, match="gradient at the checkpoint is not finite in w: there is no direction"
        ):
            sharpness(Task(Rooted(0.0), nn.MSELoss(), (x, x)), kind)
        assert np.isfinite(sharpness(Task(Rooted(0.0), nn.MSELoss(), (x, x)), "average").values).all()

    def test_the_search_ends_where_the_slope_does_and_keeps_what_it_found(self):
        """From (-1, -1) the slope leads to 0, sqrt(2) away, where the loss is finite and largest, and has no slope."""
        model = Rooted(-1.0)
        x = torch.zeros(8, 1).double()
        task = Task(model, lambda z, y: -(z - y).square().mean(), (x, x))
        found = sharpness(task, "sam", rho=2**0.5, batch=None)
        assert found.values[0] == pytest.approx(2.0)
        assert found.checks[0].level == "pass"


class TestTheSlope:
    """The worst case is sought along autograd's gradient, which has to be the loss's own."""

    @staticmethod
    def slope(loss, kind="sam"):
        x, y = labelled()
        found = sharpness(Task(rescalable(), loss, (x, y)), kind)
        return found, {c.name: c for c in found.checks}.get("slope")

    def test_of_an_ordinary_loss_it_is_the_gradients(self):
        _, check = self.slope(nn.functional.cross_entropy)
        assert check is not None
        assert check.level == "pass"
        assert check.value < 0.1 * check.limit

    def test_a_rise_sought_along_a_forged_gradient_is_said_to_be_too_low(self):
        """The same value with a gradient that leads downhill: the largest rise found is 0, and the true one is not."""

        def forged(z, y):
            loss = nn.functional.cross_entropy(z, y)
            return 2 * loss.detach() - loss

        honest, _ = self.slope(nn.functional.cross_entropy)
        found, check = self.slope(forged)
        assert found.values[0] < 0.1 * honest.values[0]
        assert check.level == "warn"
        assert "may be far too low" in check.message

    def test_a_part_that_autograd_was_told_to_leave_out_shows_along_a_random_direction(self):
        class Half(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.outer = rescalable(), nn.Linear(3, 3).double()

            def forward(self, x):
                return self.outer(self.inner(x).detach())

        torch.manual_seed(0)
        model, (x, y) = Half(), labelled()
        check = {c.name: c for c in sharpness(Task(model, nn.CrossEntropyLoss(), (x, y)), "sam").checks}["slope"]
        assert check.level == "warn"

    def test_averages_need_no_gradient_and_have_no_such_check(self):
        assert self.slope(nn.functional.cross_entropy, "average")[1] is None


class TestBatches:
    def test_the_loaders_batches_and_the_order_of_the_samples_do_not_matter(self):
        """Both depend on how somebody trained, or stored the data; the size of m-sharpness's batches is ours."""
        x, y = labelled(96)
        order = y.argsort()
        found = [
            sharpness(Task(rescalable(), nn.CrossEntropyLoss(), data), "sam", rho=0.5, batch=32)
            for data in ((x, y), list(zip(x.split(7), y.split(7), strict=True)))
        ]
        assert found[0].values[0] == pytest.approx(found[1].values[0], rel=1e-10)
        assert found[1].settings["batch"] == 32
        assert found[1].warnings == ()
        by_class = sharpness(
            Task(rescalable(), nn.CrossEntropyLoss(), (x[order], y[order])), "sam", rho=0.5, batch=32
        ).values[0]
        pure = [(x[order][i : i + 32], y[order][i : i + 32]) for i in range(0, 96, 32)]
        kept = sharpness(Task(rescalable(), nn.CrossEntropyLoss(), pure, rebatch=False), "sam", rho=0.5, batch=32)
        # Batches of one class rise much more than mixed ones, whose values differ by how they were mixed.
        assert abs(by_class - found[0].values[0]) < 0.2 * abs(kept.values[0] - found[0].values[0])

    def test_batches_that_must_stay_whole_are_said(self):
        x, y = labelled(96)
        task = Task(rescalable(), nn.CrossEntropyLoss(), (x, y), batch_size=24, rebatch=False)
        found = sharpness(task, "sam", batch=32)
        assert found.settings["batch"] == 24
        assert "batches of at most 24 samples, not 32" in found.warnings[0]
        assert sharpness(task, "average", batch=32).warnings == ()


class TestLogits:
    def test_outputs_without_logits_are_refused(self):
        x, y = labelled()
        own = Task(
            rescalable(), train=(x, y), batch_loss=lambda model, b: nn.functional.cross_entropy(model(b[0]), b[1])
        )
        with pytest.raises(MeasurementError, match="a batch_loss task doesn't give them"):
            sharpness(own, normalize_logits=True)
        flat = Task(nn.Linear(4, 1).double(), nn.MSELoss(), (x, x[:, :1]))
        with pytest.raises(MeasurementError, match=r"gives a Tensor of shape \(64, 1\)"):
            sharpness(flat, normalize_logits=True)
