"""Norms, updates, noise scale and effective rank against float64 sums, closed forms and torch's own clipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from landscape.dynamics import updates
from landscape.dynamics.embeddings import effective_rank
from landscape.dynamics.noise import NoiseScale
from landscape.dynamics.norms import LONG, RUN, clip_coefficient, host_norms, joint_norm, not_finite, tensor_norms
from landscape.dynamics.packed import SMALL, Packed, PackedNorms
from landscape.dynamics.sketch import WIDTH, Sketch
from landscape.dynamics.updates import Step, Updates
from landscape.errors import MeasurementError


def naive(t: torch.Tensor) -> float:
    return math.sqrt(float((t.detach().to(torch.float64) ** 2).sum()))


class TestNorms:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    def test_of_every_size_and_precision(self, dtype):
        g = torch.Generator().manual_seed(0)
        sizes = [(1,), (3, 5), (), (LONG,), (LONG + 1,), (3 * RUN, 7), (5 * RUN + 3,), (0,)]
        tensors = [torch.randn(s, generator=g).to(dtype) for s in sizes]
        found = tensor_norms(tensors)
        assert found.dtype == torch.float64
        for t, norm in zip(tensors, found, strict=True):
            assert float(norm) == pytest.approx(naive(t), rel=1e-6)
        whole = math.sqrt(sum(naive(t) ** 2 for t in tensors))
        assert float(joint_norm(found)) == pytest.approx(whole, rel=1e-6)

    def test_twenty_five_million_numbers_where_torchs_own_norm_is_off(self):
        t = torch.randn(25_000_000, generator=torch.Generator().manual_seed(1))
        exact = naive(t)
        assert float(tensor_norms([t])) == pytest.approx(exact, rel=1e-6)
        assert abs(float(torch.stack(torch._foreach_norm([t]))) - exact) > 1e-4 * exact

    @pytest.mark.parametrize("value", [1.1, 3e-7])
    def test_equal_numbers_whose_rounding_errors_add_up(self, value):
        t = torch.full((4_000_000,), value)
        assert float(tensor_norms([t])) == pytest.approx(naive(t), rel=1e-6)

    def test_float16_does_not_overflow(self):
        t = torch.full((10_000,), 1000.0, dtype=torch.float16)
        assert float(tensor_norms([t])) == pytest.approx(1e5, rel=1e-6)

    @pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch 2.11 warns of to_sparse
    def test_mixed_kinds_sparse_and_complex(self):
        dense = torch.zeros(6, 2)
        dense[[1, 4]] = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
        twice = torch.sparse_coo_tensor([[1, 1]], torch.tensor([[3.0, 0.0], [1.0, 0.0]]), (6, 2), check_invariants=True)
        c = torch.tensor([3 + 4j, 0j])
        found = tensor_norms([dense.to_sparse(1), twice, c, dense.double(), dense.half()])
        assert found[:4].tolist() == pytest.approx([naive(dense), 4.0, 5.0, naive(dense)], rel=1e-6)
        assert float(found[4]) == pytest.approx(naive(dense.half()), rel=1e-6)

    def test_what_is_not_finite_is_counted_by_tensor(self):
        norms = tensor_norms([torch.tensor([1.0, math.nan]), torch.ones(3), torch.tensor([math.inf]), torch.zeros(0)])
        assert int(not_finite(norms)) == 2
        assert tensor_norms([]).shape == (0,)
        assert float(joint_norm(tensor_norms([]))) == 0

    @pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-20, 1e-30, 1e-42, 1e18, 1e25, 1e38])
    def test_on_the_host_by_either_way(self, scale):
        """What float32 can't hold the squares of, too, and tensors that end anywhere in a run."""
        g = torch.Generator().manual_seed(0)
        shapes = [(1,), (RUN,), (RUN + 1,), (40, 130), (), (LONG,), (0,), (2, 3, 5)]
        tensors = [scale * torch.randn(s, generator=g) for s in shapes]
        tensors.append(tensors[3].reshape(4, 13, 10, 10).to(memory_format=torch.channels_last))
        exact = [naive(t) for t in tensors]
        assert Packed.fits(tensors)
        for found in (host_norms(tensors), PackedNorms(tensors)(tensors)):
            assert found is not None
            assert list(found[1:]) == pytest.approx(exact, rel=1e-6, abs=1e-300)
            assert found[0] == pytest.approx(math.hypot(*exact), rel=1e-6)

    def test_on_the_host_what_packing_can_not_take_goes_the_other_way(self):
        tensors = [torch.ones(3), torch.ones(4, 2)]
        packed = PackedNorms(tensors)
        sparse = torch.sparse_coo_tensor([[1, 1]], torch.ones(2, 2), (4, 2), check_invariants=True)
        graph = (2 * torch.ones(4, 2, requires_grad=True)).square()
        for odd, norm in (
            (None, math.nan),
            (sparse, math.sqrt(8)),
            (torch.ones(4, 2).double(), 8**0.5),
            (graph, 128**0.5),
        ):
            assert packed([tensors[0], odd]) is None
            joint, first, second = host_norms([tensors[0], odd])
            assert first == pytest.approx(3**0.5)
            assert second == pytest.approx(norm, nan_ok=True)
            assert joint == pytest.approx(math.hypot(3**0.5, 0 if odd is None else norm))
        assert not Packed.fits([torch.ones(2), torch.ones(2).double()])
        assert not Packed.fits([torch.ones(SMALL + 1)])
        assert not Packed.fits([])

    def test_on_the_host_what_is_not_finite_says_so_without_a_warning(self):
        tensors = [torch.ones(2000), torch.full((5,), math.inf), torch.tensor([1.0, math.nan]), torch.full((9,), 3e38)]
        for found in (host_norms(tensors), PackedNorms(tensors)(tensors)):
            assert found is not None
            assert math.isnan(found[0])
            assert found[1] == pytest.approx(2000**0.5)
            assert found[2] == math.inf
            assert math.isnan(found[3])
            assert found[4] == pytest.approx(9e38)

    @pytest.mark.parametrize("limit", [0.1, 1.0, 100.0])
    def test_clipping_is_torchs_own(self, limit):
        w = nn.Parameter(torch.zeros(50))
        w.grad = torch.randn(50, generator=torch.Generator().manual_seed(3))
        before = tensor_norms([w.grad])
        total = nn.utils.clip_grad_norm_([w], limit)
        assert float(total) == pytest.approx(float(before), rel=1e-6)
        factor = clip_coefficient(joint_norm(before), limit)
        assert float(tensor_norms([w.grad])) == pytest.approx(float(before * factor), rel=1e-6)


class TestNoiseScale:
    def test_the_means_are_right_from_the_first_step_on(self):
        """Norms that never change: |G|^2 = (8 2 - 2 5) / 6 and tr(Sigma) = (5 - 2) / (1/2 - 1/8) at every step."""
        scale = NoiseScale(decay=0.9)
        for _ in range(3):
            scale.add(small=5.0, big=2.0, b=2, B=8)
            assert (scale.squared_gradient, scale.variance) == (pytest.approx(1), pytest.approx(8))

    def test_gaussian_gradients_of_known_scale(self):
        """g = G + noise of covariance s^2 I: the noise scale is n s^2 / |G|^2."""
        n, s, b, parts = 50, 2.0, 4, 8
        g = torch.Generator().manual_seed(0)
        mean = torch.randn(n, generator=g, dtype=torch.float64)
        scale = NoiseScale(decay=0.999)
        for _ in range(4000):
            noise = torch.randn(parts, n, generator=g, dtype=torch.float64) * s / math.sqrt(b)
            small = ((mean + noise) ** 2).sum(1).mean()
            big = ((mean + noise.mean(0)) ** 2).sum()
            scale.add(float(small), float(big), b, b * parts)
        exact = float((mean**2).sum())
        # About 2,000 independent steps weigh in: the estimates' standard errors are near 0.5%.
        assert scale.squared_gradient == pytest.approx(exact, rel=0.03)
        assert scale.variance == pytest.approx(n * s * s, rel=0.03)
        assert scale.value == pytest.approx(n * s * s / exact, rel=0.05)

    def test_one_step_is_the_formula(self):
        scale = NoiseScale()
        assert math.isnan(scale.value)
        assert scale.add(10.0, 4.0, 2, 8) == pytest.approx(((8 * 4 - 2 * 10) / 6, 6 / (1 / 2 - 1 / 8)))
        assert scale.value == pytest.approx(16.0 / 2.0)  # nothing is lost to the start of the mean

    def test_a_mean_gradient_lost_in_the_noise(self):
        scale = NoiseScale()
        scale.add(10.0, 1.0, 2, 8)
        assert scale.squared_gradient < 0
        assert scale.value == math.inf

    def test_steps_that_are_not_finite_are_left_out(self):
        scale = NoiseScale()
        scale.add(10.0, 4.0, 2, 8)
        before = scale.value
        assert math.isnan(scale.add(math.nan, 4.0, 2, 8)[0])
        assert (scale.value, scale.steps) == (before, 1)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="must be smaller than the big one"):
            NoiseScale().add(1.0, 1.0, 8, 8)
        with pytest.raises(ValueError, match=r"decay=1\.0"):
            NoiseScale(decay=1.0)


class TestEffectiveRank:
    def test_known_answers(self):
        assert float(effective_rank(torch.eye(8))) == pytest.approx(8, rel=1e-5)
        assert float(effective_rank(torch.outer(torch.arange(1.0, 6), torch.ones(4)))) == pytest.approx(1, rel=1e-4)
        assert float(effective_rank(torch.diag(torch.tensor([3.0, 1.0])))) == pytest.approx(1.754765, abs=1e-5)

    def test_positions_are_samples(self):
        x = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
        assert float(effective_rank(x)) == float(effective_rank(x.reshape(24, 5)))
        assert float(effective_rank(torch.zeros(3, 2))) == 0

    @pytest.mark.parametrize("features", [torch.ones(3), torch.ones(0, 3), torch.tensor([[math.nan, 1.0]])])
    def test_bad_input(self, features):
        with pytest.raises(MeasurementError, match=r"no rank|not defined"):
            effective_rank(features)


def follow(
    parameters: list[nn.Parameter], steps: int, size: float = 1e-3, **how
) -> list[tuple[Step, dict[str, float]]]:
    """Move the parameters at random, and return each step measured beside the same in float64 by hand."""
    g = torch.Generator().manual_seed(0)
    tracker = Updates(parameters, **how)
    start = [p.detach().double().clone() for p in parameters]
    before, last, found = start, None, []
    for _ in range(steps):
        with torch.no_grad():
            for p in parameters:
                p.add_(size * (0.3 + torch.randn(p.shape, generator=g)).to(p.dtype))
        now = [p.detach().double().clone() for p in parameters]
        delta = torch.cat([(a - b).reshape(-1) for a, b in zip(now, before, strict=True)])
        exact = {
            "update": naive(delta),
            "weights": naive(torch.cat([p.reshape(-1) for p in now])),
            "distance": naive(torch.cat([(a - b).reshape(-1) for a, b in zip(now, start, strict=True)])),
            "cosine": math.nan if last is None else float(delta @ last) / naive(delta) / naive(last),
            **{f"tensor {i}": naive(a - b) for i, (a, b) in enumerate(zip(now, before, strict=True))},
        }
        found.append((tracker.step(), exact))
        before, last = now, delta
    return found


def differences(parameters: list[nn.Parameter], before: list[torch.Tensor]) -> list[torch.Tensor]:
    return [p.detach().double() - b for p, b in zip(parameters, before, strict=True)]


def weights(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(4)
    return [nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in shapes]


class TestUpdates:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("way", ["packed", "flat", "each"])
    def test_against_float64_by_hand(self, dtype, way, monkeypatch):
        if way != "packed":
            monkeypatch.setattr(Packed, "fits", staticmethod(lambda tensors: False))
        if way == "each":
            monkeypatch.setattr(updates, "FLAT", 0)
        size = 0.1 if dtype == torch.bfloat16 else 1e-3
        for step, exact in follow(weights((40, 30), (30,), (5, 4, 3), dtype=dtype), 4, size):
            assert float(step.update) == pytest.approx(exact["update"], rel=1e-6)
            assert float(step.ratio) == pytest.approx(exact["update"] / exact["weights"], rel=1e-6)
            assert float(step.distance) == pytest.approx(exact["distance"], rel=1e-6)
            assert float(step.cosine) == pytest.approx(exact["cosine"], abs=1e-5, nan_ok=True)
            for i in range(3):
                assert float(step.updates[i]) == pytest.approx(exact[f"tensor {i}"], rel=1e-6)

    def test_several_precisions_in_one_model(self):
        parameters = weights((40, 30)) + weights((30,), dtype=torch.float64)
        step, exact = follow(parameters, 2)[-1]
        assert float(step.update) == pytest.approx(exact["update"], rel=1e-6)

    def test_a_sketch_is_within_its_stated_error(self):
        """Over 30 seeds: the squared norm's mean and spread, for vectors that a careless sketch gets wrong."""
        n = 20 * WIDTH + 77
        g = torch.Generator().manual_seed(0)
        column = torch.zeros(n)
        column[:: WIDTH // 16] = 1.0  # one column of a matrix of 4,096
        for x in (torch.ones(n), torch.randn(n, generator=g), column, torch.linspace(-1, 2, n)):
            exact = naive(x)
            found = torch.tensor([float(Sketch([x], seed).of(0, x).norm()) for seed in range(30)]) / exact
            # Five standard errors of a mean of 30, and a spread that a chi-squared of 29 degrees reaches once in 1e4.
            # Few numbers that are not zero meet rarely, and then all at once: their spread is known less well.
            error = Sketch.RELATIVE_ERROR
            assert abs(float(found.mean()) - 1) <= 5 * error / 30**0.5 + error**2
            assert float(found.std()) <= (1.5 if int((x != 0).sum()) > WIDTH else 3) * error

    def test_the_stated_error_of_a_sketch_is_the_spread_of_its_norms(self):
        """Of 100 sketches; three rows collide in 2/3 of what many do, and the spread of 100 errs by 7%."""
        x = torch.randn(3 * WIDTH, generator=torch.Generator().manual_seed(0))
        sketch = Sketch([x] * 100)
        found = torch.stack([sketch.of(i, x).norm() for i in range(100)])
        expected = Sketch.RELATIVE_ERROR * math.sqrt(2 / 3)
        assert float(found.std() / x.double().norm()) == pytest.approx(expected, rel=0.2)

    def test_above_the_memory_the_sketch_takes_over(self):
        parameters = weights((700, 500), (300,))
        found = follow(parameters, 3, 1e-5, memory=1_000_000)
        tracker = Updates(parameters, memory=1_000_000)
        assert not tracker.exact
        assert Updates(parameters, memory=10_000_000).exact
        for step, exact in found:
            slack = 5 * tracker.relative_error
            assert float(step.update) == pytest.approx(exact["update"], rel=slack)
            assert float(step.distance) == pytest.approx(exact["distance"], rel=slack)
            assert float(step.cosine) == pytest.approx(exact["cosine"], abs=2 * slack, nan_ok=True)
            assert float(step.updates[1]) == pytest.approx(exact["tensor 1"], rel=1e-6)  # short: kept as it is
            assert float(joint_norm(step.weights)) == pytest.approx(exact["weights"], rel=1e-6)

    @pytest.mark.parametrize("kind", ["packed", "flat", "each", "sketched", "sketched later"])
    def test_a_set_that_changes_keeps_the_starts_of_those_that_stay(self, kind, monkeypatch):
        """One tensor goes, two stay (in another order), one comes; distances against float64 by hand."""
        if kind in ("flat", "each"):
            monkeypatch.setattr(Packed, "fits", staticmethod(lambda tensors: False))
        if kind == "each":
            monkeypatch.setattr(updates, "FLAT", 0)
        small, large = (
            (1 << 20, 1 << 20) if kind == "sketched" else (None, 1 << 20 if kind == "sketched later" else None)
        )
        gone, long, short, new = weights((30,), (700, 500), (40, 3), (20, 20))
        starts = {id(p): p.detach().double().clone() for p in (gone, long, short)}
        g = torch.Generator().manual_seed(8)

        def move(*tensors):
            with torch.no_grad():
                for p in tensors:
                    p.add_(0.01 * torch.randn(p.shape, generator=g))

        first = Updates([gone, long, short], memory=small, seed=3)
        move(gone, long, short, new)
        first.step()
        move(long)  # between the last step and the change: a part of the distance all the same
        starts[id(new)] = new.detach().double().clone()
        second = Updates([short, new, long], memory=large, seed=3, since=(first, [2, None, 1]))
        slack = 5 * second.relative_error or 1e-6
        assert second.exact == (not kind.startswith("sketched"))
        for i in range(2):
            move(short, new, long)
            step = second.step()
            away = naive(torch.cat([(p - starts[id(p)]).reshape(-1) for p in (short, new, long)]))
            assert float(step.distance) == pytest.approx(away, rel=slack)
            assert math.isnan(float(step.cosine)) == (i == 0)
        # A tensor of other sizes under the same parameter starts anew.
        short.data = torch.zeros(7)
        third = Updates([short], since=(second, [0]))
        assert float(third.step().distance) == 0

    def test_what_was_sketched_stays_so_when_it_becomes_small(self):
        large, small = weights((700, 500), (40, 3))
        first = Updates([large, small], memory=1 << 20)
        second = Updates([small], memory=1 << 30, since=(first, [1]))
        assert not second.exact
        with torch.no_grad():
            small.add_(1.0)
        assert float(second.step().distance) == pytest.approx(math.sqrt(120), rel=1e-6)

    def test_singly_each_step_is_measured_from_its_own_beginning(self):
        parameters = weights((40, 30), (30,))
        tracker, start = Updates(parameters, singly=True), [p.detach().double().clone() for p in parameters]
        g = torch.Generator().manual_seed(1)
        for turn in range(3):
            with torch.no_grad():
                for _ in range(2):  # the first of the two is not measured
                    before = [p.detach().double().clone() for p in parameters]
                    if turn:
                        tracker.begin()
                    for p in parameters:
                        p.add_(0.01 * torch.randn(p.shape, generator=g))
            if not turn:
                before = start
            step = tracker.step()
            assert float(step.update) == pytest.approx(
                math.hypot(*map(naive, differences(parameters, before))), rel=1e-6
            )
            assert float(step.distance) == pytest.approx(
                math.hypot(*map(naive, differences(parameters, start))), rel=1e-6
            )
            assert math.isnan(float(step.cosine))
        with pytest.raises(MeasurementError, match="begin"):
            tracker.step()

    @pytest.mark.parametrize("singly", [True, False])
    def test_other_memory_put_into_a_parameter_is_followed(self, singly):
        """As by torch.nn.utils.vector_to_parameters; and nothing of it becomes part of a graph."""
        parameters = weights((40, 30), (30,))
        tracker, start = Updates(parameters, singly=singly), [p.detach().double().clone() for p in parameters]
        for p in parameters:
            p.data = p.detach() + 1
        tracker.begin()
        for p in parameters:
            p.data = p.detach() + 2
        step = tracker.step()
        assert float(step.distance) == pytest.approx(math.hypot(*map(naive, differences(parameters, start))), rel=1e-6)
        assert float(step.update) == pytest.approx(2 * math.sqrt(1230), rel=1e-6)
        assert isinstance(tracker._held, updates._OnHost)
        assert not any(v.requires_grad for b in (tracker._held._now, tracker._held._before) for v in b.views)

    def test_a_training_that_diverges_warns_of_nothing(self, recwarn):
        parameters = weights((40, 30))
        tracker = Updates(parameters)
        for value in (1e30, math.inf, -math.inf):
            with torch.no_grad():
                parameters[0].fill_(value)
            update, weight, _ = tracker.rows()
        assert (update[0], weight[0]) == (math.inf, math.inf)
        assert not recwarn.list

    def test_a_step_that_changes_nothing(self):
        tracker = Updates(weights((3, 2)))
        first, second = tracker.step(), tracker.step()
        assert float(first.update) == float(second.update) == float(second.distance) == 0
        assert math.isnan(float(second.cosine))

    def test_bad_input(self):
        with pytest.raises(MeasurementError, match="there are none"):
            Updates([])
        with pytest.raises(MeasurementError, match="cpu and meta"):
            Updates([torch.zeros(2), torch.zeros(2, device="meta")])
