"""Out of memory, on a GPU or in the host's allocator: smaller batches where the task allows it, else one line."""

from __future__ import annotations

import json

import pytest
import torch
from small_world import landscape
from torch import nn

from landscape import Hessian, Objective, Task, eigenpairs, line, open_archive, random_direction
from landscape.errors import OutOfMemory
from landscape.probes.derivatives import twice_differentiable

ERRORS = {
    "device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "host": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9"),
}


class Narrow(nn.Module):
    """Has no memory for more than `most` samples at once; with `double`, only where it computes in float64."""

    def __init__(self, most: int, error: str, *, double: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.most, self.error, self.double = most, error, double
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.most and (x.dtype == torch.float64 or not self.double):
            raise ERRORS[self.error]()
        return self.net(x)


def _task(model: nn.Module, n: int = 64, **changes) -> Task:
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p)
    x, y = torch.randn(n, 3), torch.randint(2, (n,))
    return Task(model, nn.CrossEntropyLoss(), train=(x, y), batch_size=32, **changes)


@pytest.fixture(params=list(ERRORS))
def error(request) -> str:
    return request.param


@pytest.mark.parametrize("most", [16, 9, 1])
def test_a_pass_goes_on_with_smaller_batches_and_says_so(error, most):
    model = Narrow(1000, error)
    task = _task(model)
    with Objective(task) as whole:
        expected, gradient = whole.evaluate(accuracy=True, stderr=True), whole.gradient()
        logits, labels = whole.predictions()
    with Objective(task) as objective:
        model.most = most
        found = objective.evaluate(accuracy=True)
        torch.testing.assert_close(objective.gradient(), gradient)
        torch.testing.assert_close(objective.predictions(), (logits, labels))
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert found.accuracy == expected.accuracy
        cut = next(2**i for i in range(9) if 32 / 2**i <= most)
        assert objective.notes[-1] == f"out of memory on whole batches: they are cut in {cut}"
        assert min(model.seen) >= 32 // cut


def test_a_slice_of_the_surface_goes_on_with_smaller_batches(error):
    model = Narrow(1000, error)
    task = _task(model)
    direction = random_direction(task, 0)
    expected = line(task, direction, [-0.5, 0.0, 0.5]).loss
    with Objective(task) as objective:
        model.most = 16
        found = line(objective, direction, [-0.5, 0.0, 0.5])
    assert found.loss == pytest.approx(expected, rel=1e-6)


def test_batches_that_never_fit_are_cut_before_the_loss_is_verified(error):
    model = Narrow(16, error)
    with Objective(_task(model)) as objective:
        assert objective.evaluate().loss > 0
    with pytest.raises(OutOfMemory, match="out of memory on one batch"), Objective(_task(model, rebatch=False)):
        pass


@pytest.mark.parametrize("pass_", ["evaluate", "gradient", "predictions"])
def test_batches_that_cannot_be_cut_end_in_one_line_that_says_what_to_do(error, pass_):
    model = Narrow(1000, error)
    with Objective(_task(model, rebatch=False)) as objective:
        model.most = 16
        with pytest.raises(OutOfMemory, match=r"out of memory on one batch, and .* give smaller batches \(Task\("):
            getattr(objective, pass_)()
    model.most = 1000
    with Objective(_task(model)) as objective:
        model.most = 0
        with pytest.raises(OutOfMemory, match="out of memory on 1/32 of a batch"):
            getattr(objective, pass_)()


def test_products_take_the_hosts_error_as_the_devices(error):
    model = Narrow(1000, error)
    task = _task(model)
    with Hessian(task) as h:
        expected = eigenpairs(h, k=2).values
    with Hessian(task) as h:
        model.most = 16
        assert eigenpairs(h, k=2).values == pytest.approx(expected, rel=1e-4)
        assert any("cut in two" in note for note in h.notes)


def test_the_second_derivative_is_compared_on_fewer_samples_and_no_verdict_is_made_of_memory(error):
    model = Narrow(1000, error)
    task = _task(model)
    with Objective(task.replace(max_samples=32)):
        pass
    model.double, model.most = True, 4  # the comparison alone is made in float64
    check = twice_differentiable(task)
    assert check.level == "pass", check
    assert check.message.endswith("(on 8 samples: out of memory on more)")
    model.most = 0
    check = twice_differentiable(task)
    assert check.level == "warn"
    assert "out of memory on one sample; give smaller batches" in check.message


TASKS = """
import torch
from landscape import Task, task

class Greedy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 2)
    def forward(self, x):
        out = self.net(x)
        if out.requires_grad:
            out.register_hook(self.look)
        return out
    def look(self, gradient):
        if torch.is_grad_enabled():  # a second derivative will follow
            raise {error}

@task
def greedy():
    g = torch.Generator().manual_seed(0)
    return Task(Greedy(), torch.nn.CrossEntropyLoss(), rebatch=False,
                train=(torch.randn(64, 4, generator=g), torch.randint(2, (64,), generator=g)))
"""


def test_a_probe_keeps_what_was_measured_and_says_what_there_was_no_memory_for(error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raised = (
        "torch.OutOfMemoryError('CUDA out of memory')"
        if error == "device"
        else f"RuntimeError({str(ERRORS['host']())!r})"
    )
    (tmp_path / "t.py").write_text(TASKS.format(error=raised))
    torch.save({"net.weight": torch.ones(2, 4), "net.bias": torch.zeros(2)}, "c.pt")
    done = landscape("probe", "c.pt", "--task", "t.py:greedy", "--only", "performance,eigenvalues", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["results"][0]
    assert found["loss"]["train"] > 0
    assert "not measured: eigenvalues: out of memory" in done.stderr
    assert "give smaller batches (Task(batch_size=...)), fewer samples (--max-samples)" in done.stderr
    kept = {entry.kind: entry.result.status for entry in open_archive(found["archive"]).entries}
    assert kept == {"performance": "complete", "eigenvalues": "failed"}
