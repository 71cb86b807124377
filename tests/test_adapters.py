"""Lightning modules and Transformers models, with the real libraries, against the loss of the whole set."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from untouched import State

from landscape import GaussNewton, Hessian, Objective, Task
from landscape.errors import TaskError

lightning = pytest.importorskip("lightning")
transformers = pytest.importorskip("transformers")


def agrees_with_differences(task: Task) -> None:
    """Compare one Hessian product with a central difference of gradients, both in float64."""
    with Hessian(task.replace(dtype=torch.float64)) as h:
        objective = h.objective
        v = torch.randn(h.shape[0], generator=torch.Generator().manual_seed(0)).double()
        product = h @ v
        direction = [x.view_as(p) for x, p in zip(v.split([p.numel() for p in objective.parameters]),
                                                  objective.parameters, strict=True)]  # fmt: skip
        sides = []
        for step in (1e-5, -1e-5):
            objective.move([direction], [step])
            sides.append(torch.cat([g.reshape(-1) for g in objective.gradient()]))
        objective.reset()
    difference = (sides[0] - sides[1]) / 2e-5
    # A step of 1e-5 errs by about 1e-10 of the third derivative, and by rounding of 1e-11.
    assert (difference - product).norm() <= 1e-5 * product.norm()


# ------------------------------------------------------------------------------------------------ Transformers

LENGTHS = (9, 4, 6, 9, 2, 7)


def tokens() -> list[dict[str, torch.Tensor]]:
    """Sequences of different lengths, padded, the padding's labels ignored; and a column that no model takes."""
    g = torch.Generator().manual_seed(0)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(1, 40, (9,), generator=g)
        mask = (torch.arange(9) < length).long()
        rows.append(
            {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100), "source": length}
        )
    return rows


def stacked(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {k: torch.stack([r[k] for r in rows]) for k in ("input_ids", "attention_mask", "labels")}


def gpt2(**config) -> nn.Module:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, **config)
    )


class TestTransformers:
    def test_a_causal_language_model_is_weighed_by_its_predicted_tokens(self):
        model = gpt2().double()
        with Objective(Task.from_transformers(model, tokens(), batch_size=2)) as objective:
            found = objective.evaluate(accuracy=True, stderr=True)
            logits, labels = objective.predictions()
            assert objective.task.batch_loss is None
        model.eval()
        batch = stacked(tokens())
        out = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits[:, :-1]
        want = batch["labels"][:, 1:]
        assert found.loss == pytest.approx(F.cross_entropy(out.flatten(0, 1), want.flatten()).item(), rel=1e-12)
        assert len(labels) == int((want != -100).sum()) == sum(LENGTHS) - len(LENGTHS)
        assert found.accuracy == (out.argmax(-1) == want)[want != -100].double().mean().item()
        assert F.cross_entropy(logits, labels).item() == pytest.approx(found.loss, rel=1e-12)
        assert found.stderr > 0

    def test_tied_embeddings_count_once_and_its_hessian_is_right(self):
        model = gpt2()
        task = Task.from_transformers(model, tokens(), batch_size=4)
        h = Hessian(task)
        assert h.shape[0] == sum(p.numel() for p in model.parameters())
        agrees_with_differences(task)

    def test_everything_is_as_before(self):
        model = gpt2().train()
        model(**stacked(tokens())).loss.backward()
        before = State(model)
        with GaussNewton(Task.from_transformers(model, tokens(), batch_size=4)) as a:
            a @ torch.ones(a.shape[0])
        before.unchanged()

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_attention_kernels_inside_torch(self, attention):
        agrees_with_differences(Task.from_transformers(gpt2(attn_implementation=attention), tokens(), batch_size=3))

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_activation_checkpointing_in_train_mode(self, reentrant):
        # Without padding: in train mode the model's own loss is taken, whose mean must be one over samples.
        rows = [{**r, "labels": r["input_ids"], "attention_mask": torch.ones(9).long()} for r in tokens()]
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        settings = {"batch_size": 3, "dtype": torch.float64, "mode": "train"}
        plain, checkpointed = gpt2(**still), gpt2(**still)
        expected = Hessian(Task.from_transformers(plain, rows, **settings))
        checkpointed.activation_checkpointing_enable({"use_reentrant": reentrant})
        checkpointed.enable_input_require_grads()
        v = torch.ones(expected.shape[0]).double()
        found = Hessian(Task.from_transformers(checkpointed, rows, **settings)) @ v
        assert torch.allclose(found, expected @ v, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("kind", ["sequence", "masked", "tokens", "regression", "multilabel"])
    def test_heads_of_bert(self, kind):
        torch.manual_seed(0)
        sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "intermediate_size": 16, "max_position_embeddings": 16}  # fmt: skip
        rows = tokens()
        if kind == "sequence":
            model = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=3, **sizes))
            rows = [{**r, "labels": torch.tensor(i % 3)} for i, r in enumerate(rows)]
        elif kind == "regression":
            model = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=1, **sizes))
            rows = [{**r, "labels": torch.tensor(i / 3)} for i, r in enumerate(rows)]
        elif kind == "multilabel":
            config = transformers.BertConfig(num_labels=3, problem_type="multi_label_classification", **sizes)
            model = transformers.BertForSequenceClassification(config)
            rows = [{**r, "labels": torch.tensor([1.0, i % 2, 0.0])} for i, r in enumerate(rows)]
        elif kind == "tokens":
            model = transformers.BertForTokenClassification(transformers.BertConfig(num_labels=5, **sizes))
            rows = [{**r, "labels": torch.where(r["labels"] >= 0, r["labels"] % 5, -100)} for r in rows]
        else:
            model = transformers.BertForMaskedLM(transformers.BertConfig(**sizes))
        model = model.double()
        with Objective(Task.from_transformers(model, rows, batch_size=4)) as objective:
            assert objective.task.batch_loss is None, "its own loss was not recognized"
            loss = objective.evaluate().loss
        # Its own binary cross entropy mixes float32 labels with float64 logits.
        exact = 1e-6 if kind == "multilabel" else 1e-10
        assert loss == pytest.approx(model.eval()(**stacked(rows)).loss.item(), rel=exact)

    def test_a_sequence_to_sequence_model(self):
        torch.manual_seed(0)
        config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
                                       decoder_start_token_id=0, pad_token_id=0)  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config).double()
        with Objective(Task.from_transformers(model, tokens(), batch_size=4)) as objective:
            loss = objective.evaluate().loss
        assert loss == pytest.approx(model.eval()(**stacked(tokens())).loss.item(), rel=1e-10)

    def test_images(self):
        torch.manual_seed(0)
        config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                        intermediate_size=16, image_size=8, patch_size=4, num_labels=4)  # fmt: skip
        rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": torch.tensor(i % 4)} for i in range(6)]
        task = Task.from_transformers(transformers.ViTForImageClassification(config), rows, test=rows[:3], batch_size=4)
        with Objective(task, "test") as objective:
            assert len(objective.predictions()[1]) == 3
        agrees_with_differences(task)

    def test_segmentation_is_its_pixels_cross_entropy_without_those_it_ignores(self):
        torch.manual_seed(0)
        config = transformers.SegformerConfig(num_channels=1, num_encoder_blocks=1, depths=[1], sr_ratios=[1],
                                              hidden_sizes=[4], patch_sizes=[3], strides=[2], num_attention_heads=[1],
                                              mlp_ratios=[1], decoder_hidden_size=4, num_labels=3)  # fmt: skip
        model = transformers.SegformerForSemanticSegmentation(config)
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(5, 1, 8, 8, generator=g), torch.randint(3, (5, 8, 8), generator=g)
        y[3:, :6] = 255
        rows = [{"pixel_values": a, "labels": b} for a, b in zip(x, y, strict=True)]
        task = Task.from_transformers(model, rows, batch_size=2)
        assert task.batch_loss is None
        whole = model.eval()(pixel_values=x, labels=y)
        with Objective(task) as objective:
            found = objective.evaluate(accuracy=True)
        assert found.loss == pytest.approx(whole.loss.item(), rel=1e-6)
        right = F.interpolate(whole.logits, size=(8, 8), mode="bilinear").argmax(1) == y
        assert found.accuracy == pytest.approx(right[y != 255].float().mean().item())

    def test_a_flag_beside_the_tensors_makes_no_sample_of_a_batch(self):
        class Pairs(nn.Linear):
            def forward(self, x, y, return_loss=False):
                assert x.shape == (3, 5)
                scores = super().forward(x) @ y.T
                return transformers.utils.ModelOutput(loss=F.cross_entropy(scores, torch.arange(3)), logits=scores)

        def collate(rows):
            return {n: torch.stack([r[n] for r in rows]) for n in ("x", "y")} | {"return_loss": True}

        rows = [{"x": torch.randn(5), "y": torch.randn(4)} for _ in range(3)]
        model = Pairs(5, 4)
        with Objective(Task.from_transformers(model, rows, collate, batch_size=3, rebatch=False)) as objective:
            assert objective.evaluate().loss == pytest.approx(model(**collate(rows)).loss.item(), rel=1e-6)

    def test_a_loss_that_no_standard_one_equals_is_taken_as_it_is(self):
        class Penalized(transformers.GPT2LMHeadModel):
            def forward(self, *args, **kwargs):
                out = super().forward(*args, **kwargs)
                out.loss = out.loss + 0.1
                return out

        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)
        whole = [{**r, "labels": r["input_ids"], "attention_mask": torch.ones(9).long()} for r in tokens()]
        task = Task.from_transformers(Penalized(config), whole, batch_size=4)
        assert task.batch_loss is not None
        with Objective(task) as objective:
            assert objective.evaluate(accuracy=True).accuracy >= 0
        # Ragged sequences: its mean is by tokens, which such a task cannot say.
        with pytest.raises(TaskError.__mro__[1], match=r"loss Penalized\.loss can't say its weight"):
            Objective(Task.from_transformers(Penalized(config), tokens(), batch_size=4)).__enter__()

    def test_flash_attention_is_refused_with_the_way_out(self):
        model = gpt2()
        model.config._attn_implementation = "flash_attention_2"
        with pytest.raises(TaskError, match='attn_implementation="sdpa"'):
            Task.from_transformers(model, tokens())

    def test_a_batch_without_labels_is_said(self):
        rows = [{k: r[k] for k in ("input_ids", "attention_mask")} for r in tokens()]
        with pytest.raises(TaskError, match="returned no loss"):
            Task.from_transformers(gpt2(), rows)


# --------------------------------------------------------------------------------------------------- Lightning


def columns(n: int = 23) -> TensorDataset:
    g = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(n, 5, generator=g), torch.randint(3, (n,), generator=g))


class Data(lightning.LightningDataModule):
    def prepare_data(self):
        raise AssertionError("prepare_data downloads: it must not be called")

    def setup(self, stage):
        self.train, self.val = columns(), columns(11)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=9, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=9)


class Module(lightning.LightningModule):
    def __init__(self, weighted: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
        self.criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]) if weighted else None)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("train_loss", loss)
        return {"loss": loss}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TestLightning:
    @pytest.mark.parametrize("weighted", [False, True])
    def test_its_own_criterion_is_recognized_and_weighed_exactly(self, weighted):
        module = Module(weighted)
        task = Task.from_lightning(module, Data())
        assert task.loss is module.criterion
        with Objective(task) as objective:
            found = objective.evaluate(accuracy=True)
        x, y = columns().tensors
        module.eval()
        assert found.loss == pytest.approx(module.criterion(module(x), y).item(), rel=1e-6)
        assert found.accuracy == (module(x).argmax(1) == y).double().mean().item()
        agrees_with_differences(task)

    def test_held_out_data_are_the_validation_loaders(self):
        with Objective(Task.from_lightning(Module(), Data()), "test") as objective:
            assert objective.samples == 11

    def test_a_step_that_computes_something_else_is_taken_as_it_is(self):
        class Smoothed(Module):
            def training_step(self, batch):
                x, y = batch
                out = self(x)
                return F.cross_entropy(out, y) + 0.01 * out.square().mean()

        module = Smoothed()
        task = Task.from_lightning(module, Data())
        assert task.batch_loss is not None
        with Objective(task) as objective:
            found = objective.evaluate(accuracy=True)
        x, y = columns().tensors
        module.eval()
        assert found.loss == pytest.approx(module.training_step((x, y)).item(), rel=1e-6)
        assert found.accuracy >= 0
        agrees_with_differences(task)

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("strength", [0.0, 1e-6])
    def test_a_weak_regularizer_is_not_taken_for_rounding(self, strength):
        class Regularized(Module):
            def training_step(self, batch):
                x, y = batch
                penalty = sum(p.square().sum() for p in self.parameters())
                return F.cross_entropy(self(x), y) + strength * penalty

        task = Task.from_lightning(Regularized(), Data())
        assert (task.loss is None) == (strength > 0)

    # Lightning's own use of a name that torch deprecates.
    @pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
    def test_after_training_with_a_trainer_it_is_as_before(self, tmp_path):
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, DataLoader(columns(), batch_size=9))
        before = State(module)
        with Hessian(Task.from_lightning(module, {"train": DataLoader(columns(), batch_size=9)})) as h:
            h @ torch.ones(h.shape[0])
        before.unchanged()

    def test_manual_optimization_is_refused(self):
        module = Module()
        module.automatic_optimization = False
        with pytest.raises(TaskError, match="optimizes manually"):
            Task.from_lightning(module, Data())

    def test_several_loaders_ask_for_a_choice(self):
        class Two(Data):
            def val_dataloader(self):
                return [DataLoader(self.val), DataLoader(self.val)]

        with pytest.raises(TaskError, match="2 val loaders; choose"):
            Task.from_lightning(Module(), Two())

    def test_a_datamodule_that_fails_is_named(self):
        class Missing(Data):
            def setup(self, stage):
                raise FileNotFoundError("no data here")

        with pytest.raises(TaskError, match="Missing failed to give its loaders: FileNotFoundError"):
            Task.from_lightning(Module(), Missing())
