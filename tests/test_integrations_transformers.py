"""The callback in Transformers' real Trainer: its numbers against hooks of the test's own, attached and not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import Dataset

from landscape import open_archive
from landscape.cli.main import main
from landscape.errors import ArchiveError, MeasurementError
from landscape.probes import GradientNorms
from landscape.report.measures import measures
from landscape.report.runs import gather

transformers = pytest.importorskip("transformers", reason="the test extra brings Transformers")

from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from landscape.probes.integrations.transformers import STATE, RecorderCallback  # noqa: E402


class Sequences(Dataset):
    """Sequences of six tokens with one class, with a class for each token, or to continue."""

    def __init__(self, n: int, seed: int, labels: str = "one") -> None:
        draw = torch.Generator().manual_seed(seed)
        self.x = torch.randint(0, 30, (n, 6), generator=draw)
        self.y = torch.randint(0, 3, (n,) if labels == "one" else (n, 6), generator=draw)
        if labels == "next":
            self.y = self.x.clone()
        if labels != "one":
            self.y[:, 2] = -100

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.x[i], "labels": self.y[i]}


def classifier() -> Any:
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3,
        max_position_embeddings=8,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def tagger() -> Any:
    return transformers.BertForTokenClassification(classifier().config)


def language_model() -> Any:
    config = transformers.GPT2Config(
        vocab_size=30, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


class Renamed(transformers.GPT2LMHeadModel):
    """A language model whose class's name doesn't say so."""


def renamed() -> Any:
    return Renamed(language_model().config)


class Training:
    """A Trainer over 40 sequences in batches of 8, two epochs; keeps what its own hooks see."""

    def __init__(self, folder: Path, make: Any = classifier, kind: Any = Trainer, **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = make()
        labels = {language_model: "next", renamed: "next", tagger: "tags"}.get(make, "one")
        quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
        shape = {"per_device_train_batch_size": 8, "num_train_epochs": 2, "use_cpu": True, "learning_rate": 1e-3}
        evaluation = {"eval_strategy": "epoch", "per_device_eval_batch_size": 16}
        metrics, data = settings.pop("compute_metrics", None), settings.pop("eval_dataset", None)
        args = TrainingArguments(output_dir=str(folder / "out"), **{**quiet, **shape, **evaluation, **settings})
        sets = {"train_dataset": Sequences(40, 0, labels), "eval_dataset": data or Sequences(24, 1, labels)}
        self.trainer = kind(self.model, args, compute_metrics=metrics, **sets)
        self.trainer.remove_callback(transformers.PrinterCallback)
        self.used, self.before = [], []
        optimizer = self.trainer.create_optimizer()
        optimizer.register_step_post_hook(lambda *_: self.used.append(self.norms()))

    def norms(self) -> list[float]:
        """The naive computation: each gradient's norm in float64."""
        return [float(p.grad.double().square().sum().sqrt()) for p in self.model.parameters()]


def record(folder: Path, *arguments: Any, callback: Any = None, **settings: Any) -> Training:
    """Train with an attached recorder in folder/run.h5."""
    training = Training(folder, *arguments, **settings)
    (callback or RecorderCallback(folder / "run.h5")).attach(training.trainer)
    training.trainer.train()
    return training


class Unclipped(Trainer):
    """Keeps the norms before its own clipping, by a naive computation."""

    def _clip_grad_norm(self, model: Any) -> Any:
        self.before = [*getattr(self, "before", []), [float(p.grad.double().norm()) for p in model.parameters()]]
        return super()._clip_grad_norm(model)


WAYS = {
    "clipped": {"max_grad_norm": 0.1},
    "not clipped": {"max_grad_norm": 0.0},
    "accumulated": {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
    "bfloat16": {"bf16": True},
}

# ------------------------------------------------------------------------------------------------- numbers


@pytest.mark.skipif(not hasattr(Trainer, "_clip_grad_norm"), reason="this Trainer clips in the midst of its loop")
@pytest.mark.parametrize("way", WAYS)
def test_norms_equal_a_naive_computation_and_weights_those_of_a_run_without(way, tmp_path):
    bare = Training(tmp_path, kind=Unclipped, **WAYS[way])
    bare.trainer.train()
    training = record(tmp_path, kind=Unclipped, **WAYS[way])
    history = open_archive(tmp_path / "run.h5").history
    # 1e-6: the norms of float32 tensors, summed in float64 on both sides, and one rounding of each gradient by
    # clipping; 1e-9: of keys' biases, whose gradient is zero but for rounding.
    tolerance = {"rtol": 1e-6, "atol": 1e-9}
    np.testing.assert_allclose(history["gradient_norm"].values[:, 1:], training.used, **tolerance)
    if way == "not clipped":
        assert history.get("gradient_norm_before") is None
    else:
        np.testing.assert_allclose(history["gradient_norm_before"].values[:, 1:], training.trainer.before, **tolerance)
        assert set(history["clip"].column("limit")) == {training.trainer.args.max_grad_norm}
    assert all(torch.equal(p, q) for p, q in zip(training.model.parameters(), bare.model.parameters(), strict=True))


class Losses(Trainer):
    """Keeps what compute_loss returns."""

    def compute_loss(self, model: Any, *arguments: Any, **settings: Any) -> Any:
        found = super().compute_loss(model, *arguments, **settings)
        if model.training:
            self.losses = [*getattr(self, "losses", []), found.item()]
        return found


def test_the_loss_of_each_step_is_there_whatever_is_logged(tmp_path):
    training = record(tmp_path, kind=Losses, logging_strategy="steps", logging_steps=5)
    history = open_archive(tmp_path / "run.h5").history
    np.testing.assert_allclose(history["loss"].column("loss"), training.trainer.losses, rtol=1e-6)
    assert history["loss"].steps.tolist() == list(range(1, 11))
    logged = history["logged"]
    assert logged.steps[~np.isnan(logged.column("grad_norm"))].tolist() == [5, 10]
    assert set(logged.names) == {"grad_norm", "learning_rate", "eval_loss", "train_loss"}
    assert logged.steps[~np.isnan(logged.column("eval_loss"))].tolist() == [5, 10]


def test_what_the_trainer_logs_of_its_own_running_is_kept_and_in_no_table(tmp_path):
    seen: dict[str, float] = {}

    class Keep(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.update(logs)

    more: dict[str, Any] = {"skip_memory_metrics": False, "include_num_input_tokens_seen": True}
    training = Training(tmp_path, logging_strategy="epoch", **more)
    training.trainer.add_callback(Keep())
    RecorderCallback(tmp_path / "run.h5").attach(training.trainer)
    training.trainer.train()
    history = open_archive(tmp_path / "run.h5").history
    books = history["bookkeeping"]
    assert {"eval_runtime", "eval_samples_per_second", "train_runtime", "total_flos"} <= set(books.names)
    assert set(seen) - {"epoch", "loss"} == {*books.names, *history["logged"].names}  # nothing is lost
    for name in books.names:
        values = books.column(name)
        assert values[~np.isnan(values)][-1] == pytest.approx(seen[name])
    told = [*books.names, "mem_cpu"]
    shown = CliRunner().invoke(main, ["show", str(tmp_path / "run.h5")]).stdout
    assert "eval_loss" in shown
    assert not [n for n in told if n in shown]
    columns = {m.label for m in measures(gather([tmp_path / "run.h5"]))}
    assert {"eval_loss", "train_loss"} <= columns
    assert not columns & set(told)


def test_the_loss_of_accumulated_batches_is_the_one_that_the_step_went_down(tmp_path):
    # A language model gets the number of tokens of all micro-batches: its losses add up to the mean over them.
    training = record(tmp_path, language_model, Losses, gradient_accumulation_steps=2)
    losses = training.trainer.losses
    each = [sum(losses[i:j]) for e in (0, 5) for i, j in ((e, e + 2), (e + 2, e + 4), (e + 4, e + 5))]
    np.testing.assert_allclose(open_archive(tmp_path / "run.h5").history["loss"].column("loss"), each, rtol=1e-6)


def test_a_callback_that_is_only_given_records_what_the_trainer_tells(tmp_path):
    training = Training(tmp_path, max_grad_norm=0.1, logging_strategy="steps", logging_steps=2)
    training.trainer.add_callback(RecorderCallback(tmp_path / "run.h5"))
    training.trainer.train()
    archive = open_archive(tmp_path / "run.h5")
    np.testing.assert_allclose(archive.history["gradient_norm"].values[:, 1:], training.used, rtol=1e-6, atol=1e-9)
    assert archive.history["loss"].steps.tolist() == [2, 4, 6, 8, 10]
    assert archive.history["epoch"].steps.tolist() == [5, 10]
    assert archive.history.get("calibration") is None
    assert archive.status == "complete"


class Skips(TrainerCallback):
    """Says of the third step that GradScaler skipped it, and sees to it that it was."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.optimizer = kwargs["optimizer"]
        self.skip = state.global_step == 2
        if self.skip:
            self.optimizer.gradient_state._set_sync_gradients(False)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.optimizer._is_overflow = self.skip
        self.optimizer.gradient_state._set_sync_gradients(True)


def test_a_step_that_the_scaler_skips_is_counted_and_takes_no_row(tmp_path):
    training = Training(tmp_path)
    training.trainer.add_callback(Skips())  # before the recorder, whose on_optimizer_step comes later
    RecorderCallback(tmp_path / "run.h5").attach(training.trainer)
    training.trainer.train()
    history = open_archive(tmp_path / "run.h5").history
    assert [(e.step, e.kind) for e in history.events if e.kind == "skipped_step"] == [(3, "skipped_step")]
    assert history["gradient_norm"].steps.tolist() == history["loss"].steps.tolist() == list(range(1, 10))


# ------------------------------------------------------------------------------------------------- evaluation


def own_nll(training: Training) -> float:
    data = training.trainer.eval_dataset
    training.model.eval()
    with torch.no_grad():
        logits, labels = training.model(input_ids=data.x).logits.double(), data.y
    if isinstance(training.model, transformers.GPT2LMHeadModel):
        logits, labels = logits[:, :-1], labels[:, 1:]
    return float(nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()))


@pytest.mark.parametrize(
    ("make", "samples"), [(classifier, 24), (language_model, 24 * 4), (renamed, 24 * 4), (tagger, 24 * 5)]
)
def test_predictions_of_evaluations_are_counted_without_metrics(make, samples, tmp_path):
    training = record(tmp_path, make)
    archive = open_archive(tmp_path / "run.h5")
    calibration = archive.history["calibration"]
    assert calibration.steps.tolist() == [5, 10]
    assert calibration.column("samples").tolist() == [samples] * 2
    # 1e-6: probabilities of float32 logits.
    assert calibration.column("nll")[-1] == pytest.approx(own_nll(training), rel=1e-6)
    assert archive.run["framework"] == f"transformers {transformers.__version__}"
    assert (archive.run["schedule"], archive.run["batch_size"]) == ("linear", 8)


def test_metrics_of_the_users_see_what_they_always_saw(tmp_path):
    shapes = []

    def metrics(found: Any) -> dict[str, float]:
        shapes.append((found.predictions.shape, found.label_ids.shape))
        return {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())}

    record(tmp_path, compute_metrics=metrics)
    history = open_archive(tmp_path / "run.h5").history
    assert shapes == [((24, 3), (24,))] * 2
    logged = history["logged"].column("eval_accuracy")
    np.testing.assert_allclose(history["calibration"].column("accuracy"), logged[~np.isnan(logged)])


def test_each_of_several_evaluation_sets_is_a_split(tmp_path):
    record(tmp_path, eval_dataset={"near": Sequences(24, 1), "far": Sequences(16, 2)}, num_train_epochs=1)
    calibration = open_archive(tmp_path / "run.h5").history["calibration"]
    for name, samples in (("samples", 24), ("far.samples", 16)):
        found = calibration.column(name)
        assert found[~np.isnan(found)].tolist() == [samples]


def test_predictions_by_a_function_of_the_users(tmp_path):
    def half(logits: Any, labels: Any, inputs: Any) -> Any:
        return {"probabilities": logits[:4].softmax(1), "labels": inputs["labels"][:4]}

    record(tmp_path, callback=RecorderCallback(tmp_path / "run.h5", predictions=half))
    assert open_archive(tmp_path / "run.h5").history["calibration"].column("samples").tolist() == [8, 8]


# ------------------------------------------------------------------------------------------------- ends


class Stops(TrainerCallback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 7:
            raise self.error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_training_that_breaks_off_says_so_and_leaves_the_trainer_as_it_was(error, tmp_path):
    training = Training(tmp_path)
    training.trainer.add_callback(Stops(error))
    callback = RecorderCallback(tmp_path / "run.h5", probes=[GradientNorms()]).attach(training.trainer)
    with pytest.raises(type(error)):
        training.trainer.train()
    archive = open_archive(tmp_path / "run.h5")
    assert archive.status == ("failed" if isinstance(error, ValueError) else "interrupted")
    assert archive.history["gradient_norm"].steps.tolist() == list(range(1, 8))
    assert not {"training_step", "prediction_step", "evaluation_loop"} & set(vars(training.trainer))
    with pytest.raises(MeasurementError, match="between on_train_begin and on_train_end"):
        _ = callback.recorder


@pytest.mark.parametrize("at", [4, 5])  # the fifth step is an epoch's last: saved before the epoch is said to end
@pytest.mark.parametrize("attached", [True, False])
def test_a_resumed_training_goes_on_with_the_archive(attached, at, tmp_path):
    saved = {"save_strategy": "steps", "save_steps": at}
    training = Training(tmp_path, **saved)
    training.trainer.add_callback(Stops(ValueError("no")))
    RecorderCallback(tmp_path / "run.h5").attach(training.trainer)
    with pytest.raises(ValueError, match="no"):
        training.trainer.train()
    folder = tmp_path / "out" / f"checkpoint-{at}"
    assert (folder / STATE).is_file()
    again = Training(tmp_path, **saved)
    if attached:
        folder = folder.rename(tmp_path / "moved")
        RecorderCallback(tmp_path / "run.h5").attach(again.trainer)
    else:
        again.trainer.add_callback(RecorderCallback(tmp_path / "run.h5"))
    again.trainer.train(resume_from_checkpoint=str(folder))
    archive = open_archive(tmp_path / "run.h5")
    series = archive.history["gradient_norm"]
    assert archive.status == "complete"
    assert series.current().steps.tolist() == list(range(1, 11))
    assert series.superseded.sum() == 7 - at
    assert archive.history["epoch"].current().values.tolist() == [[1.0], [2.0]]
    straight = Training(tmp_path / "straight")
    straight.trainer.train()
    # From an epoch's last step on, the Trainer shuffles the next one otherwise than it would have done.
    same = at if at == 5 else 10
    np.testing.assert_allclose(series.current().values[:same, 1:], straight.used[:same], rtol=1e-6, atol=1e-9)


def test_the_archive_lies_in_the_output_folder_by_default_and_is_not_replaced(tmp_path):
    record(tmp_path, callback=RecorderCallback())
    assert open_archive(tmp_path / "out" / "run.h5").status == "complete"
    with pytest.raises(ArchiveError, match="exists"):
        record(tmp_path, callback=RecorderCallback())


def test_a_callback_belongs_to_one_trainer(tmp_path):
    callback = RecorderCallback(tmp_path / "run.h5").attach(Training(tmp_path).trainer)
    with pytest.raises(MeasurementError, match="attached to a Trainer already"):
        callback.attach(Training(tmp_path).trainer)
