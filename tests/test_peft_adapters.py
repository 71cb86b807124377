"""An adapter's file (PEFT) goes into a model around its base; curvature is that of the adapter's parameters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

peft = pytest.importorskip("peft")

from landscape import Hessian, eigenpairs, interpolate, load_checkpoint, read_checkpoint  # noqa: E402
from landscape.checkpoints.fit import fit  # noqa: E402
from landscape.errors import CheckpointError  # noqa: E402
from landscape.scaffold import write_task_file  # noqa: E402
from landscape.task_files import load_task  # noqa: E402
from landscape.tasks import Task  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

METHODS = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
    "dora": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
    "embedding": lambda: peft.LoraConfig(r=2, target_modules=["embed_tokens"], modules_to_save=["lm_head"]),
    "ia3": lambda: peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


def _base():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=12, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=2, max_position_embeddings=16,
            )
        )  # fmt: skip


def _adapted(method: str, seed: int, scale: float = 0.3):
    """Return the base with an adapter whose every parameter is drawn, as if it were trained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(_base(), METHODS[method]())
        for p in model.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p, std=scale)
    return model.eval()


def _rows(n: int = 8):
    ids = torch.randint(0, 12, (n, 6), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": x.clone()} for x in ids]


def _logits(model):
    with torch.no_grad():
        return model(input_ids=torch.stack([r["input_ids"] for r in _rows()])).logits


@pytest.mark.parametrize("method", METHODS)
def test_an_adapters_folder_and_file_give_the_model_that_wrote_them(tmp_path, method):
    trained = _adapted(method, seed=1)
    trained.save_pretrained(tmp_path / "adapter")
    for where in (tmp_path / "adapter", tmp_path / "adapter" / "adapter_model.safetensors"):
        model = _adapted(method, seed=2)
        assert not torch.equal(_logits(model), _logits(trained))
        found = load_checkpoint(where, model)
        torch.testing.assert_close(_logits(model), _logits(trained), rtol=0, atol=0)
        assert found.weights.keys() == model.state_dict().keys()
        assert any("base model's" in n and "from its config" in n for n in found.notes)


def test_a_model_that_transformers_put_the_adapter_into_reads_it_too(tmp_path):
    trained = _adapted("lora", seed=1)
    trained.save_pretrained(tmp_path)
    model = _base().eval()
    model.add_adapter(METHODS["lora"](), adapter_name="mine")
    load_checkpoint(tmp_path, model)
    torch.testing.assert_close(_logits(model), _logits(trained))


def test_a_whole_file_of_a_model_with_an_adapter_is_read_as_ever(tmp_path):
    trained = _adapted("lora", seed=1)
    torch.save(trained.state_dict(), tmp_path / "whole.pt")
    model = _adapted("lora", seed=2)
    assert not any("adapter alone" in n for n in load_checkpoint(tmp_path / "whole.pt", model).notes)
    assert torch.equal(_logits(model), _logits(trained))


def test_an_adapter_for_another_rank_or_without_a_place_is_refused(tmp_path):
    _adapted("lora", seed=1).save_pretrained(tmp_path)
    weights = read_checkpoint(tmp_path).weights
    other = peft.get_peft_model(_base(), peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))
    with pytest.raises(CheckpointError, match=r"lora_A.weight' \(2, 8\) in the file, \(3, 8\) in the model"):
        fit(weights, other)
    fewer = peft.get_peft_model(_base(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(CheckpointError, match=r"not in the model: 'model.layers.0.self_attn.v_proj.lora_A.weight'"):
        fit(weights, fewer)
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM has none: .*is_trainable=True"):
        fit(weights, _base())


def test_a_trainers_folder_with_an_adapter_has_its_optimizer_and_step_beside_our_own_state(tmp_path):
    _adapted("lora", seed=1).save_pretrained(tmp_path)
    torch.save({"position": 1}, tmp_path / "landscape_recorder.pt")
    (tmp_path / "trainer_state.json").write_text('{"global_step": 7}')
    found = read_checkpoint(tmp_path)
    assert found.step == 7
    assert set(found.facts) >= {"adapter_config"}


def test_curvature_is_that_of_the_adapters_parameters(tmp_path):
    task = Task.from_transformers(_adapted("dora", seed=1).double(), _rows(), batch_size=4)
    model = _adapted("dora", seed=1).double()
    model.set_attn_implementation("eager")
    ids = torch.stack([r["input_ids"] for r in _rows()])
    trained = [p for p in model.parameters() if p.requires_grad]
    logits = model(input_ids=ids).logits
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, 12), ids[:, 1:].reshape(-1))
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, trained, create_graph=True)])
    rows = [torch.autograd.grad(g, trained, retain_graph=True) for g in gradient]
    dense = torch.stack([torch.cat([x.reshape(-1) for x in row]) for row in rows])
    with Hessian(task) as operator:
        assert operator.shape[0] == len(dense)
        values = eigenpairs(operator, k=2, which="both").values
    torch.testing.assert_close(torch.as_tensor(values), torch.linalg.eigvalsh(dense).flip(0)[:2], rtol=1e-6, atol=1e-12)


def test_the_way_between_two_adapters_ends_at_their_losses(tmp_path):
    losses = []
    for seed in (1, 2):
        model = _adapted("lora", seed)
        model.save_pretrained(tmp_path / str(seed))
        ids = torch.stack([r["input_ids"] for r in _rows()])
        losses.append(float(F.cross_entropy(_logits(model)[:, :-1].reshape(-1, 12), ids[:, 1:].reshape(-1))))
    task = Task.from_transformers(_adapted("lora", seed=3), _rows(), batch_size=4)
    path = interpolate(task, tmp_path / "1", tmp_path / "2")
    assert [float(path.loss[0, 0]), float(path.loss[0, -1])] == pytest.approx(losses, rel=1e-6)


def test_init_writes_a_task_file_with_the_adapter_around_its_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _base().save_pretrained("base")
    from transformers import AutoModelForCausalLM

    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained("base"),
        peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    model.save_pretrained("runs/adapter")
    torch.save(_rows(), "rows.pt")
    for name in ("runs/adapter", "runs/adapter/adapter_model.safetensors"):
        path = write_task_file(read_checkpoint(name), "mine_task.py", force=True)
        text = path.read_text()
        assert "AutoModelForCausalLM.from_pretrained(BASE)" in text
        path.write_text(
            text.replace("train = test = collator = None", "import torch; train = test = torch.load('rows.pt'); "
                         "collator = None")
        )  # fmt: skip
        task = load_task("mine_task.py")
        assert not any("from its config" in n for n in load_checkpoint(name, task).notes)
        assert sum(p.requires_grad for p in task.model.parameters()) == 2
