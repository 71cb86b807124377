"""Weights come out of every file that people have, bit for bit, with what stands beside them."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from landscape.checkpoint import load_checkpoint, read_checkpoint
from landscape.checkpoints.files import read_bytes
from landscape.checkpoints.mapped import map_file
from landscape.errors import CheckpointError
from landscape.surface.states import read_state


def _net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def _trained() -> tuple[nn.Sequential, torch.optim.Adam]:
    net = _net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net(torch.ones(6, 4)).square().sum().backward()
    optimizer.step()
    return net, optimizer


def _same(got: dict, want: dict) -> None:
    assert list(got) == list(want)
    for name in want:
        assert got[name].dtype == want[name].dtype, name
        assert torch.equal(got[name], want[name]), name


FILES = {
    "bare": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "epoch": 3},
    "net": lambda s: {"net": s, "epoch": 3},
    "module": lambda s: {"module": s, "epoch": 3},
    "ema only": lambda s: {"ema": s, "epoch": 3},
    "ema_state_dict only": lambda s: {"ema_state_dict": s, "epoch": 3},
    "nested": lambda s: {"model": {"state_dict": s, "config": {"a": 1}}, "epoch": 3},
    "nested module": lambda s: {"ema": {"module": s, "decay": 0.99}, "epoch": 3},
    "app": lambda s: {"app": {"model": s, "optim": {"state": {}, "param_groups": []}}, "epoch": 3},
    "unknown name": lambda s: {"generator": s, "epoch": 3},
    "random states beside": lambda s: {"model": s, "rng": {"cpu": torch.get_rng_state()}, "epoch": 3},
    "scores beside": lambda s: {"model": s, "best": {"loss": torch.tensor(0.1)}, "epoch": 3},
    "mixed": lambda s: {**s, "epoch": 3},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
@pytest.mark.parametrize("kind", list(FILES))
def test_state_dicts_wherever_they_are_kept(tmp_path, kind, suffix):
    state = _net().state_dict()
    torch.save(FILES[kind](state), tmp_path / f"x{suffix}")
    ck = read_checkpoint(tmp_path / f"x{suffix}")
    _same(ck.weights, state)
    assert ck.epoch == (None if kind == "bare" else 3)
    assert ck.path == str(tmp_path / f"x{suffix}")
    assert ck.optimizer is None or kind == "app"


def test_old_files_and_pickles_of_arrays(tmp_path):
    state = _net().state_dict()
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    _same(read_checkpoint(tmp_path / "old.pth").weights, state)
    arrays = {k: v.numpy() for k, v in state.items()}
    (tmp_path / "d2.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}))
    ck = read_checkpoint(tmp_path / "d2.pkl")
    _same(ck.weights, state)
    assert ck.facts == {"__author__": "x"}


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (lambda g, d: {"optimizerG": g, "optimizerD": d}, ["optimizerG", "optimizerD"]),  # PyTorch's DCGAN
        (lambda g, d: {"g_optim": g, "d_optim": d, "scaler": {}}, ["g_optim", "d_optim"]),  # StyleGAN's
        (lambda g, d: {"opt_G": g, "opt_D": d}, ["opt_G", "opt_D"]),
        (lambda g, d: {"optimizer": {"g": g, "d": d}}, ["g", "d"]),
        (lambda g, d: {"optimizer": g, "optimizers": {"g": g, "d": d}}, ["g", "d"]),
        (lambda g, d: {"optimizer_states": [g, d]}, ["0", "1"]),  # Lightning's
        (lambda g, d: {"optimizer": g, "critic": {"opt": d}}, ["optimizer", "critic.opt"]),
        (lambda g, d: {"optimizers": [g], "opt_d": [d]}, ["optimizers.0", "opt_d.0"]),
        (lambda g, d: {"optimizer": [g]}, [""]),
        (lambda g, d: {"opt_of_mine": g}, [""]),
    ],
)
def test_the_states_of_all_optimizers_are_kept_under_the_names_that_they_have(tmp_path, form, names):
    net, optimizer = _trained()
    g, d = optimizer.state_dict(), torch.optim.SGD(net.parameters(), lr=0.5).state_dict()
    torch.save({"netG": net.state_dict(), "netD": net.state_dict(), **form(g, d), "epoch": 3}, tmp_path / "x.pt")
    ck = read_checkpoint(tmp_path / "x.pt", weights="netG")
    assert list(ck.optimizers) == names
    assert [o["param_groups"][0]["lr"] for o in ck.optimizers.values()] == [0.01, 0.5][: len(names)]
    assert torch.equal(ck.optimizers[names[0]]["state"][0]["exp_avg"], g["state"][0]["exp_avg"])
    # They are no facts of the run, and nothing that was left out.
    assert (ck.epoch, ck.facts) == (3, {"scaler": {}} if "g_optim" in names else {})
    assert not [n for n in ck.notes if "not kept" in n]


def test_optimizer_step_and_facts_come_along_in_order(tmp_path):
    net, optimizer = _trained()
    torch.save(
        {
            "model": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": torch.tensor(120),
            "epoch": np.int64(7),
            "loss": np.float32(0.5),
            "schedule": "cosine",
            "lr": 0.1,
            "best": math.inf,
            "args": argparse.Namespace(width=3, sizes=(1, 2)),
            "history": list(range(1000)),
            "rng": torch.get_rng_state(),
        },
        tmp_path / "x.pt",
    )
    ck = read_checkpoint(tmp_path / "x.pt")
    assert (ck.step, ck.epoch) == (120, 7)
    assert ck.facts == {
        "loss": 0.5,
        "schedule": "cosine",
        "lr": 0.1,
        "best": math.inf,
        "args": {"width": 3, "sizes": [1, 2]},
    }
    assert all(type(v) in (float, str, dict) for v in ck.facts.values())
    json.dumps(ck.facts)
    assert any("not kept" in n and "history" in n and "rng" in n for n in ck.notes)
    want = optimizer.state_dict()
    assert ck.optimizer is not None
    assert list(ck.optimizer["state"]) == list(want["state"])
    assert ck.optimizer["param_groups"][0]["params"] == want["param_groups"][0]["params"]
    for key, moments in want["state"].items():
        for name, value in moments.items():
            assert torch.equal(ck.optimizer["state"][key][name], value)
    other = torch.optim.Adam(_net().parameters())
    other.load_state_dict(ck.optimizer)
    assert other.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize(
    ("value", "want"), [(5, 5), (5.0, 5), (torch.tensor(5), 5), (torch.tensor([5.0]), 5), (np.int32(5), 5)]
)
def test_steps_in_every_spelling(tmp_path, value, want):
    torch.save({"model": _net().state_dict(), "iter_num": value}, tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt").step == want


@pytest.mark.parametrize("value", [True, 2.5, "5", torch.ones(3), None, math.nan])
def test_what_is_no_step_stays_none(tmp_path, value):
    torch.save({"model": _net().state_dict(), "step": value}, tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt").step is None


# EMA ----------------------------------------------------------------------------------------------------------

EMA_NAMES = ["ema", "ema_state_dict", "model_ema", "state_dict_ema", "ema_model", "swa_state_dict", "averaged_model"]


@pytest.mark.parametrize("name", EMA_NAMES)
def test_weights_chooses_between_model_and_ema(tmp_path, name):
    model, ema = _net(0).state_dict(), _net(1).state_dict()
    torch.save({"model": model, name: ema}, tmp_path / "x.pt")
    ck = read_checkpoint(tmp_path / "x.pt")
    _same(ck.weights, model)
    assert any(f"--weights ema takes {name!r}" in n for n in ck.notes)
    _same(read_checkpoint(tmp_path / "x.pt", weights="model").weights, model)
    _same(read_checkpoint(tmp_path / "x.pt", weights="ema").weights, ema)
    _same(read_checkpoint(tmp_path / "x.pt", weights=name).weights, ema)


def test_averaged_model_of_torch(tmp_path):
    net = _net()
    average = torch.optim.swa_utils.AveragedModel(net)
    average.update_parameters(net)
    torch.save({"model": net.state_dict(), "ema": average.state_dict()}, tmp_path / "x.pt")
    target = _net(5)
    ck = load_checkpoint(tmp_path / "x.pt", target, weights="ema")
    _same(dict(target.state_dict()), dict(average.module.state_dict()))
    assert any("averaged over 1 models" in n for n in ck.notes)
    assert any("'module.' removed" in n for n in ck.notes)


def test_averaged_weights_inside_the_state_dict(tmp_path):
    model, ema = _net(0).state_dict(), _net(1).state_dict()
    both = {**{f"model.{k}": v for k, v in model.items()}, **{f"model_ema.{k}": v for k, v in ema.items()}}
    torch.save({"state_dict": both}, tmp_path / "x.ckpt")
    target = _net(5)
    ck = load_checkpoint(tmp_path / "x.ckpt", target)
    _same(dict(target.state_dict()), dict(model))
    assert any("'model_ema.' are left out" in n for n in ck.notes)
    load_checkpoint(tmp_path / "x.ckpt", target, weights="ema")
    _same(dict(target.state_dict()), dict(ema))
    load_checkpoint(tmp_path / "x.ckpt", target, weights="model.")
    _same(dict(target.state_dict()), dict(model))


def test_no_ema_and_no_such_entry_say_what_there_is(tmp_path):
    torch.save({"model": _net().state_dict()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"no averaged \(EMA\) weights; it has: model \(9 tensors\)"):
        read_checkpoint(tmp_path / "x.pt", weights="ema")
    with pytest.raises(CheckpointError, match=r"no weights 'student'; it has: model \(9 tensors\)"):
        read_checkpoint(tmp_path / "x.pt", weights="student")


def test_several_models_are_not_guessed(tmp_path):
    state = _net().state_dict()
    torch.save({"netG": state, "netD": _net(1).state_dict(), "epoch": 2}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"2 sets of weights; choose one with --weights: netG .*, netD"):
        read_checkpoint(tmp_path / "x.pt")
    ck = read_checkpoint(tmp_path / "x.pt", weights="netG")
    _same(ck.weights, state)
    assert ck.epoch == 2


# Parts of one model in several entries ------------------------------------------------------------------------


class Parts(nn.Module):
    """What an autoencoder's training saves as {"encoder": ..., "decoder": ...}."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.decoder = nn.Sequential(nn.Linear(3, 4))


def _entries_of(parts: Parts) -> dict:
    return {"encoder": parts.encoder.state_dict(), "decoder": parts.decoder.state_dict()}


@pytest.mark.parametrize("level", [(), ("nets",)])
@pytest.mark.parametrize("beside", [{}, {"discriminator": nn.Linear(4, 1).state_dict()}])
def test_parts_of_one_model_are_put_together_under_their_names(tmp_path, level, beside):
    trained = Parts(1)
    content = {**_entries_of(trained), **beside}
    for name in level:
        content = {name: content}
    torch.save({**content, "epoch": 3}, tmp_path / "x.pt")
    model = Parts()
    ck = load_checkpoint(tmp_path / "x.pt", model)
    _same(dict(model.state_dict()), dict(trained.state_dict()))
    _same(ck.weights, dict(trained.state_dict()))
    assert ck.epoch == 3
    assert "weights put together from 'encoder' and 'decoder', as the model's parts of these names" in ck.notes[0]
    assert ("discriminator" in ck.notes[0]) == bool(beside)


def test_parts_whose_names_are_the_models_own_are_put_together(tmp_path):
    trained = Parts(1)
    both = trained.state_dict()
    first = {k: v for k, v in both.items() if k.startswith("encoder")}
    torch.save({"backbone": first, "net": {k: v for k, v in both.items() if k not in first}}, tmp_path / "x.pt")
    model = Parts()
    ck = load_checkpoint(tmp_path / "x.pt", model)  # "net" alone is what would be taken
    _same(dict(model.state_dict()), dict(both))
    assert "'backbone' and 'net', which hold each of the model's names once" in ck.notes[0]


def test_parts_that_fit_the_model_alone_or_not_exactly_are_not_put_together(tmp_path):
    trained = Parts(1)
    whole = dict(trained.state_dict())
    torch.save({"model": whole, **_entries_of(Parts(2))}, tmp_path / "whole.pt")
    model = Parts()
    load_checkpoint(tmp_path / "whole.pt", model)
    _same(dict(model.state_dict()), whole)
    lacking = _entries_of(trained)
    del lacking["decoder"]["0.bias"]
    torch.save(lacking, tmp_path / "lacking.pt")
    wrong = {**_entries_of(trained), "decoder": nn.Sequential(nn.Linear(3, 5)).state_dict()}
    torch.save(wrong, tmp_path / "wrong.pt")
    for name in ("lacking.pt", "wrong.pt"):
        with pytest.raises(
            CheckpointError, match=r"2 sets of weights; .* encoder \(7 tensors\), decoder .*call its sub"
        ):
            load_checkpoint(tmp_path / name, model)
    _same(dict(model.state_dict()), whole)


def test_the_state_of_a_path_out_of_parts_is_that_of_the_whole_model(tmp_path):
    a, b, model = Parts(1), Parts(2), Parts()
    torch.save(_entries_of(a), tmp_path / "a.pt")
    for given in (tmp_path / "a.pt", _entries_of(b)):
        state = read_state(given, model, 1)
        _same(dict(state.weights), dict((a if given == tmp_path / "a.pt" else b).state_dict()))


# Lightning ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_lightning_checkpoint_with_its_averaging_callback(tmp_path):
    import lightning
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self, width: int = 5, where: Path = Path("runs/a")):
            super().__init__()
            self.save_hyperparameters()
            self.net = _net()

        def training_step(self, batch, _index):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.05)

    module = Module()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(12, 4)), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EMAWeightAveraging(decay=0.5), ModelCheckpoint(tmp_path, filename="last")],
    )
    trainer.fit(module, data)
    path = tmp_path / "last.ckpt"
    raw = torch.load(path, weights_only=False)
    assert "current_model_state" in raw
    ck = read_checkpoint(path)
    assert (ck.step, ck.epoch) == (6, 1)
    assert ck.facts["hyper_parameters"] == {"width": 5, "where": "runs/a"}
    assert "pytorch-lightning_version" in ck.facts
    assert ck.optimizer is not None
    assert set(ck.optimizer["state"]) == set(range(6))
    _same(ck.weights, dict(raw["state_dict"]))
    assert any("averaged weights (--weights model" in n for n in ck.notes)
    _same(read_checkpoint(path, weights="model").weights, dict(raw["current_model_state"]))
    _same(read_checkpoint(path, weights="ema").weights, dict(raw["state_dict"]))
    target = _net(5)
    ck = load_checkpoint(path, target, weights="model")
    assert any("'net.' removed" in n for n in ck.notes)


# Safetensors and folders --------------------------------------------------------------------------------------


def test_safetensors_one_file_and_sharded(tmp_path):
    state = {k: v.clone() for k, v in _net().state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    got = read_checkpoint(tmp_path / "x.safetensors").weights
    _same(dict(sorted(got.items())), dict(sorted(state.items())))
    folder = _sharded(tmp_path / "s", state)
    ck = read_checkpoint(folder)
    assert {k: v.tolist() for k, v in ck.weights.items()} == {k: v.tolist() for k, v in state.items()}
    assert "joined from 3 shards" in ck.notes
    assert set(read_checkpoint(folder / "model.safetensors.index.json").weights) == set(state)
    with pytest.raises(CheckpointError, match="one of 3 shards; give its folder"):
        read_checkpoint(folder / "model-00001-of-00003.safetensors")


def _sharded(folder: Path, state: dict, suffix: str = ".safetensors") -> Path:
    folder.mkdir()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    weight_map = {}
    for i in range(3):
        part = {k: v for j, (k, v) in enumerate(state.items()) if j % 3 == i}
        name = f"{stem}-{i + 1:05}-of-00003{suffix}"
        save_file(part, folder / name) if suffix == ".safetensors" else torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
    return folder


def test_sharded_bin_files(tmp_path):
    state = _net().state_dict()
    ck = read_checkpoint(_sharded(tmp_path / "s", dict(state), ".bin"))
    assert {k: v.tolist() for k, v in ck.weights.items()} == {k: v.tolist() for k, v in state.items()}


def test_a_shard_that_is_missing_outside_or_empty_of_its_promise(tmp_path):
    state = {k: v.clone() for k, v in _net().state_dict().items()}
    folder = _sharded(tmp_path / "s", state)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    (folder / "model-00002-of-00003.safetensors").rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=r"misses 1 of 3 shards \(model-00002-of-00003"):
        read_checkpoint(folder)
    (tmp_path / "away").rename(folder / "model-00002-of-00003.safetensors")
    for outside in ("../x.safetensors", "/etc/passwd", "a/b.safetensors"):
        index.write_text(json.dumps({"weight_map": {**content["weight_map"], "w": outside}}))
        with pytest.raises(CheckpointError, match=r"outside its folder .*refused"):
            read_checkpoint(folder)
    promise = {**content["weight_map"], "w": "model-00001-of-00003.safetensors"}
    index.write_text(json.dumps({"weight_map": promise}))
    with pytest.raises(CheckpointError, match="promises 1 tensors that no shard holds"):
        read_checkpoint(folder)
    for broken in ("{", "[]", "{}"):
        index.write_text(broken)
        with pytest.raises(CheckpointError):
            read_checkpoint(folder)


@pytest.mark.filterwarnings("ignore")
def test_transformers_folders_with_trainer_state_and_ties(tmp_path):
    import transformers

    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=6)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="2KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    (tmp_path / "one" / "trainer_state.json").write_text(json.dumps({"global_step": 50, "epoch": 2.0, "log": [1]}))
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save(optimizer.state_dict(), tmp_path / "one" / "optimizer.pt")
    (tmp_path / "one" / "training_args.bin").write_bytes(pickle.dumps(os.system))
    for name in ("one", "many"):
        target = transformers.GPT2LMHeadModel(config)
        ck = load_checkpoint(tmp_path / name, target)
        _same(dict(target.state_dict()), dict(model.state_dict()))
        assert ck.facts["config"]["architectures"] == ["GPT2LMHeadModel"]
        assert any("tied" in n and "lm_head.weight = transformer.wte.weight" in n for n in ck.notes)
    ck = read_checkpoint(tmp_path / "one")
    assert (ck.step, ck.epoch) == (50, 2)
    assert ck.optimizer is not None
    assert len(ck.optimizer["param_groups"][0]["params"]) == len(list(model.parameters()))
    body = transformers.GPT2Model(config)
    ck = load_checkpoint(tmp_path / "one", body, weights="transformer.")
    assert torch.equal(body.wte.weight, model.transformer.wte.weight)


def test_a_folder_with_one_file_is_that_file_and_with_several_asks(tmp_path):
    state = _net().state_dict()
    torch.save({"model": state, "epoch": 4}, tmp_path / "last.ckpt")
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.bin")
    ck = read_checkpoint(tmp_path)
    _same(ck.weights, state)
    assert ck.epoch == 4
    assert any("last.ckpt is the only weights file" in n for n in ck.notes)
    torch.save(state, tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"2 weights files \(best.ckpt, last.ckpt\); give one of them"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ([], "without weights .it holds: nothing"),
        (["a.txt", "b.md"], "without weights .it holds: a.txt, b.md"),
        (["latest", "zero_to_fp32.py"], "DeepSpeed folder"),
        (["checkpoint-5/model.safetensors", "checkpoint-9/model.safetensors"], r"2 checkpoints \(checkpoint-5"),
    ],
)
def test_folders_without_weights(tmp_path, files, line):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(CheckpointError, match=line):
        read_checkpoint(tmp_path)


# torch.distributed.checkpoint ---------------------------------------------------------------------------------


def _dcp(state: dict, folder: Path) -> Path:
    import torch.distributed.checkpoint as dcp

    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoint_folders(tmp_path):
    net, optimizer = _trained()
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 7, "args": {"a": [1, {"b": "x"}]}}
    ck = read_checkpoint(_dcp(state, tmp_path / "d"))
    _same(dict(sorted(ck.weights.items())), dict(sorted(net.state_dict().items())))
    assert ck.step == 7
    assert ck.facts == {"args": {"a": [1, {"b": "x"}]}}
    assert ck.optimizer is not None
    assert ck.optimizer["param_groups"][0]["params"] == list(range(6))
    assert torch.equal(ck.optimizer["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_app_state_with_names(tmp_path):
    from torch.distributed.checkpoint.state_dict import get_state_dict

    net, optimizer = _trained()
    model_state, optimizer_state = get_state_dict(net, optimizer)
    folder = _dcp({"app": {"model": model_state, "optim": optimizer_state}, "epoch": 3}, tmp_path / "d")
    ck = read_checkpoint(folder)
    assert set(ck.weights) == set(net.state_dict())
    assert ck.epoch == 3
    assert ck.optimizer is not None
    assert ck.optimizer["param_groups"][0]["params"] == [n for n, _ in net.named_parameters()]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_folders_are_read_safely_and_completely(tmp_path):
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

    net = _net()
    folder = _dcp({"model": net.state_dict()}, tmp_path / "d")
    original = (folder / ".metadata").read_bytes()

    def rewrite(change):
        meta = pickle.loads(original)
        change(meta)
        (folder / ".metadata").write_bytes(pickle.dumps(meta))

    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    rewrite(lambda m: setattr(m, "planner_data", Runs()))
    with pytest.raises(CheckpointError, match=r"asks to run posix.system"):
        read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()

    def outside(meta):
        for place in meta.storage_data.values():
            place.relative_path = "../" + place.relative_path

    rewrite(outside)
    with pytest.raises(CheckpointError, match="outside the folder"):
        read_checkpoint(folder)

    def half(meta):  # a second chunk is promised, that of another rank, and is not there
        name = "model.0.weight"
        meta.state_dict_metadata[name].size = torch.Size([10, 4])
        meta.state_dict_metadata[name].chunks.append(ChunkStorageMetadata(torch.Size([5, 0]), torch.Size([5, 4])))

    rewrite(half)
    with pytest.raises(CheckpointError, match=r"'model.0.weight' has 20 of 40 elements"):
        read_checkpoint(folder)

    def two(meta):  # the same bytes as the second chunk: rows 5 to 9
        half(meta)
        places = {i.fqn: p for i, p in meta.storage_data.items()}
        meta.storage_data[MetadataIndex("model.0.weight", torch.Size([5, 0]))] = places["model.0.weight"]

    rewrite(two)
    got = read_checkpoint(folder).weights["0.weight"]
    assert torch.equal(got, torch.cat([net[0].weight.detach()] * 2))
    (folder / ".metadata").write_bytes(original[: len(original) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(folder)
    (folder / ".metadata").write_bytes(original)
    next(folder.glob("*.distcp")).unlink()
    with pytest.raises(CheckpointError, match="is missing; copy it too"):
        read_checkpoint(folder)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_entries_that_would_run_code_do_not(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    folder = _dcp({"model": _net().state_dict(), "extra": Runs()}, tmp_path / "d")
    with pytest.raises(CheckpointError, match=r"asks to run posix.system"):
        read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def _rank(rank: int, port: int, folder: str, seen: str) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    state = torch.load(seen, weights_only=True)
    sharded = {k: distribute_tensor(v, mesh, [Shard(0)]) if v.ndim else v for k, v in state.items()}
    dcp.save({"model": sharded}, checkpoint_id=folder)
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_checkpoint_that_two_processes_wrote(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    state = _net().state_dict()
    torch.save(state, tmp_path / "whole.pt")
    args = (port, str(tmp_path / "d"), str(tmp_path / "whole.pt"))
    torch.multiprocessing.spawn(_rank, args=args, nprocs=2)
    ck = read_checkpoint(tmp_path / "d")
    _same(dict(sorted(ck.weights.items())), dict(sorted(state.items())))


# What is mistaken for a checkpoint ----------------------------------------------------------------------------


def _zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "x")
    return buffer.getvalue()


def _tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
NO_CHECKPOINTS = {
    "empty": (b"", "is empty"),
    "lfs": (POINTER, r"git-lfs pointer.*git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html>404</html>", "HTML page"),
    "text": ("weights: é\n".encode() * 100, "text file"),
    "json": (b'{"error": "not found"}', "text file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "HDF5"),
    "npz": (_zipped("a.npy"), "NumPy .npz"),
    "zip": (_zipped("a.docx"), "zip archive without weights"),
    "pt2": (_zipped("m/archive_format"), "exported program"),
    "gzip": (gzip.compress(b"abc"), "gzip-compressed"),
    "gguf": (b"GGUF" + b"\0" * 40, "GGUF"),
    "tar": (_tarred(), "tar archive"),
    "noise": (bytes(range(128, 256)) * 40, "damaged, truncated or no checkpoint"),
    "safetensors header": ((10**6).to_bytes(8, "little") + b'{"a"', "truncated safetensors"),
    "safetensors body": ((2).to_bytes(8, "little") + b"{]" + b"\0" * 30, "damaged safetensors"),
    "a number": (pickle.dumps(7), "holds a int, not a state_dict"),
    "a list": (pickle.dumps([1, 2]), "holds a list, not a state_dict"),
    "no weights": (pickle.dumps({"epoch": 3, "lr": 0.1}), r"holds no weights \(it has: 'epoch', 'lr'\)"),
}


@pytest.mark.parametrize("kind", list(NO_CHECKPOINTS))
def test_each_has_a_line_of_its_own(tmp_path, kind):
    data, line = NO_CHECKPOINTS[kind]
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=line) as error:
        read_checkpoint(tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep", [4, 40, 200, 0.3, 0.6, 0.9, 0.99])
def test_truncated_at_any_place(tmp_path, keep, legacy):
    path = tmp_path / "x.pt"
    torch.save({"model": _net().state_dict()}, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=r"truncated|damaged") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_flipped_byte_of_the_weights_is_damage_and_no_other_weight(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": _net().state_dict()}, path)
    whole = path.read_bytes()
    found = read_checkpoint(path)
    tensor = next(t for t in found.weights.values() if t.numel() > 1)
    place = whole.index(tensor.numpy().tobytes())
    path.write_bytes(whole[: place + 2] + bytes([whole[place + 2] ^ 8]) + whole[place + 3 :])
    with pytest.raises(CheckpointError, match=r"x\.pt is damaged: .*/data/\d+ in it does not fit its checksum"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"does not fit its checksum"):
        map_file(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_flipped_byte_of_a_program_or_of_a_distributed_entry_is_damage(tmp_path):
    net = nn.Linear(30, 20)
    path, buffer = tmp_path / "x.pt", io.BytesIO()
    torch.jit.save(torch.jit.script(net), path)
    torch.save(net.weight.detach(), buffer)
    for whole in (path.read_bytes(), buffer.getvalue()):
        place = whole.index(net.weight.detach().numpy().tobytes())
        bad = whole[: place + 2] + bytes([whole[place + 2] ^ 8]) + whole[place + 3 :]
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match="does not fit its checksum"):
            read_checkpoint(path, trust_pickle=True)
    with pytest.raises(CheckpointError, match=r"w of part 1 is damaged: .* does not fit its checksum"):
        read_bytes(bad, "w of part 1")
    torch.testing.assert_close(read_bytes(buffer.getvalue(), "w"), net.weight.detach())


def test_a_file_written_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": _net().state_dict()}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert read_checkpoint(tmp_path / "x.pt").weights


def test_truncated_safetensors(tmp_path):
    save_file({"w": torch.ones(100)}, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[:-8])
    with pytest.raises(CheckpointError, match="damaged safetensors"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_missing_unreadable_and_special_files(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "none.pt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        read_checkpoint(tmp_path / "pipe")
    torch.save({"w": torch.ones(1)}, tmp_path / "x.pt")

    def refuse(*_args, **_kw):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(CheckpointError, match="no permission to read"):
        read_checkpoint(tmp_path / "x.pt")
    monkeypatch.undo()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CheckpointError, match="no permission to read"):
        read_checkpoint(tmp_path)


def test_weights_saved_from_the_meta_device_have_no_values(tmp_path):
    torch.save({"w.x": torch.empty(2, device="meta")}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="meta device"):
        read_checkpoint(tmp_path / "x.pt")


# Fingerprint --------------------------------------------------------------------------------------------------


def test_fingerprint_is_of_the_weights_and_nothing_else(tmp_path):
    state = {k: v.clone() for k, v in _net().state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    torch.save({"model": dict(reversed(state.items())), "epoch": 1}, tmp_path / "b.pt")
    save_file(state, tmp_path / "c.safetensors")
    prints = {read_checkpoint(tmp_path / n).fingerprint for n in ("a.pt", "b.pt", "c.safetensors")}
    assert len(prints) == 1
    assert len(prints.pop()) == 64
    changed = [
        {**state, "0.bias": state["0.bias"].nextafter(torch.tensor(9.0))},
        {**state, "0.bias": state["0.bias"].view(5, 1)},
        {**state, "0.bias": state["0.bias"].view(torch.int32)},
        {("9.bias" if k == "0.bias" else k): v for k, v in state.items()},
    ]
    seen = set()
    for other in changed:
        torch.save(other, tmp_path / "x.pt")
        seen.add(read_checkpoint(tmp_path / "x.pt").fingerprint)
    assert len(seen - prints) == 4


@pytest.mark.parametrize("how", ["zip", "strangers", "legacy", "safetensors"])
def test_flipped_bytes_give_weights_or_a_line_and_nothing_else(tmp_path, how):
    """150 files with one to three random bytes changed: CheckpointError is the only way to fail."""
    path = tmp_path / ("x.safetensors" if how == "safetensors" else "x.pt")
    content = {"model": _net().state_dict(), "epoch": 3}
    if how != "zip":
        content["args"] = argparse.Namespace(a=[1, 2])
    if how == "safetensors":
        save_file({k: v.clone() for k, v in _net().state_dict().items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    good = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = bytearray(good)
        for place in generator.integers(len(data), size=generator.integers(1, 4)):
            data[place] = generator.integers(256)
        path.write_bytes(data)
        try:
            read_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert 10 < refused < 150
