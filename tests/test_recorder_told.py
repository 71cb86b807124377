"""What a loop that isn't the user's own tells a recorder: losses after the step, clipping, skipped steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from landscape import open_archive
from landscape.probes import GradientNorms, Recorder


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2, dtype=torch.float64)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, before=lambda: None) -> None:
    optimizer.zero_grad()
    model(torch.ones(1, 3, dtype=torch.float64)).square().sum().backward()
    before()
    optimizer.step()


def test_losses_that_are_told_behind_their_step(tmp_path):
    model, optimizer = parts()
    with Recorder(tmp_path / "run.h5", model, optimizer, probes=[]) as rec:
        for i in range(3):
            if i == 1:
                rec.log(loss=10.0)
            step(model, optimizer)
            # A loss that the step has already stands; names that are arguments elsewhere are names like all others.
            rec.log_at(rec.step, {"loss": float(i), "step": 5.0, "self": torch.tensor(6.0)})
    history = open_archive(tmp_path / "run.h5").history
    assert history["loss"].column("loss").tolist() == [0, 10, 2]
    assert history["logged"].names == ("step", "self")
    assert history["logged"].values.tolist() == [[5, 6]] * 3


def test_losses_of_another_model_s_steps_are_told_of_once_and_take_no_more_memory(tmp_path):
    model, optimizer = parts()
    with Recorder(tmp_path / "run.h5", model, optimizer, probes=[]) as rec:
        for _ in range(300):  # micro-batches of one step, however many
            rec.log(loss=1.0)
        step(model, optimizer)
        model, optimizer = parts()

        def train() -> None:
            for _ in range(7000):
                rec.log(loss=2.0)
                step(model, optimizer)

        with pytest.warns(RuntimeWarning, match=r"3000 losses were logged since step 1.*make a Recorder") as told:
            train()
        assert len(told) == 1
        assert len(rec._recording.logged._calls) <= 3000
    history = open_archive(tmp_path / "run.h5").history
    assert history["loss"].column("loss").tolist() == [1]
    assert [e.kind for e in history.events].count("no_step") == 1


@pytest.mark.parametrize("by_norm", [True, False])
def test_clipping_by_others_is_measured_before_and_behind(by_norm, tmp_path):
    model, optimizer = parts()
    seen = []

    def clip() -> None:
        rec.clipping(0.1, by_norm=by_norm)
        seen.append([float(p.grad.norm()) for p in model.parameters()])
        (nn.utils.clip_grad_norm_ if by_norm else nn.utils.clip_grad_value_)(model.parameters(), 0.1)
        seen.append([float(p.grad.norm()) for p in model.parameters()])

    with Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNorms()]) as rec:
        step(model, optimizer, clip)
    history = open_archive(tmp_path / "run.h5").history
    np.testing.assert_allclose(history["gradient_norm_before"].values[0, 1:], seen[0], rtol=1e-12)
    np.testing.assert_allclose(history["gradient_norm"].values[0, 1:], seen[1], rtol=1e-12)
    (coefficient, limit) = history["clip"].values[0]
    assert limit == 0.1
    assert np.isnan(coefficient) if not by_norm else coefficient < 1


def test_each_of_several_optimizers_has_its_own_clipping(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).double()
    both = {name: torch.optim.SGD(layer.parameters(), lr=0.1) for name, layer in zip("ab", model, strict=True)}
    with Recorder(tmp_path / "run.h5", model, both, probes=[GradientNorms()]) as rec:
        model(torch.ones(1, 3, dtype=torch.float64)).square().sum().backward()
        for name in both:
            rec.clip_grad_norm_(0.1, optimizer=name)
            both[name].step()
        assert rec.steps == {"a": 1, "b": 1}
    history = open_archive(tmp_path / "run.h5").history
    for name in both:
        assert history[f"gradient_norm.{name}"].column("global")[0] == pytest.approx(0.1, rel=1e-4)
        assert history[f"gradient_norm_before.{name}"].column("global")[0] > 0.1


def test_a_skipped_step_that_is_told_counts_once(tmp_path):
    model, optimizer = parts()
    with Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNorms()]) as rec:
        rec.log(loss=2.0)
        step(model, optimizer)
        rec.log(loss=99.0)
        model(torch.ones(1, 3, dtype=torch.float64)).square().sum().backward()
        rec.skipped_step()
        rec.log(loss=1.0)
        step(model, optimizer)  # zero_grad in it drops the skipped gradients
    history = open_archive(tmp_path / "run.h5").history
    assert [(e.step, e.kind) for e in history.events if e.kind == "skipped_step"] == [(2, "skipped_step")]
    assert history["loss"].steps.tolist() == [1, 2]
    assert history["loss"].column("loss").tolist() == [2.0, 1.0]


def test_parameters_in_front_of_a_norm_are_refused_with_the_line_to_write(tmp_path):
    model, optimizer = parts()
    with (
        Recorder(tmp_path / "run.h5", model, optimizer, probes=[]) as rec,
        pytest.raises(TypeError, match=r"got a generator: .*write rec\.clip_grad_norm_\(1\.0\)"),
    ):
        rec.clip_grad_norm_(model.parameters(), 1.0)  # type: ignore[arg-type]
