"""`landscape init`: what a checkpoint holds, and a task file that fits it and needs only filling in."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from landscape.checkpoint import load_checkpoint, read_checkpoint
from landscape.checkpoints.guess import guess, sequential_layers
from landscape.errors import CheckpointError, TaskError
from landscape.objective import Objective
from landscape.scaffold import (
    default_task_file,
    describe_checkpoint,
    next_commands,
    task_file_text,
    write_task_file,
)
from landscape.task_files import load_task


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _checkpoint(state, path: str = "x.pt"):
    torch.save(state, path)
    return read_checkpoint(path)


def _fill(path: Path, **parts: str) -> None:
    """Do what a user does: replace the line that says what is missing."""
    text = path.read_text()
    for name, code in parts.items():
        marker = f'    raise NotImplementedError("fill in {name}()'
        assert text.count(marker) == 1
        start = text.index(marker)
        text = text[:start] + f"    {code}" + text[text.index("\n", start) :]
    path.write_text(text)


# Plain sequences ----------------------------------------------------------------------------------------------

# (layers, an input, whether the guess must be exact in its outputs too)
SEQUENCES = {
    "mlp": ([nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)], (2, 4), True),
    "mlp without bias": ([nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)], (2, 4), True),
    "dropout": ([nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)], (2, 4), True),
    "two linear": ([nn.Linear(4, 8), nn.Linear(8, 1)], (2, 4), True),
    "batch norm": ([nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)], (2, 4), True),
    "layer norm": ([nn.LayerNorm(4), nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)], (2, 4), True),
    "flatten first": ([nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)], (2, 4, 4), True),
    "conv": (
        [
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
        ],
        (2, 1, 8, 8),
        True,
    ),
    "conv flattened": (
        [nn.Conv2d(3, 4, 5, padding=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)],
        (2, 3, 8, 8),
        True,
    ),
    "conv 1d": ([nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 1, 1)], (2, 2, 9), True),
    "conv 3d": ([nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv3d(2, 2, 1)], (1, 1, 4, 4, 4), True),
    "uneven kernel": ([nn.Conv2d(1, 2, (3, 5), padding=(1, 2)), nn.ReLU(), nn.Conv2d(2, 2, 1)], (1, 1, 6, 6), True),
    "depthwise": ([nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)], (1, 3, 5, 5), True),
    "norm first": (
        [nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False)],
        (2, 3, 5, 5),
        True,
    ),
    "embedding": ([nn.Embedding(11, 4), nn.LayerNorm(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 11)], None, True),
    "transposed": ([nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2)], (1, 1, 4, 4), True),
    "transposed groups": ([nn.Linear(4, 4), nn.ConvTranspose2d(4, 6, 2, groups=2)], None, False),
    "prelu": ([nn.Conv2d(1, 4, 3), nn.PReLU(4), nn.Conv2d(4, 2, 3), nn.PReLU()], None, False),
    "group norm": ([nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 1)], None, False),
    "rms norm": ([nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 2)], (2, 4), True),
    "many gaps": ([nn.Linear(4, 8), nn.Tanh(), nn.Dropout(), nn.Identity(), nn.Linear(8, 3)], None, False),
}


@pytest.mark.parametrize("prefix", ["", "module.", "model.net."])
@pytest.mark.parametrize("kind", list(SEQUENCES))
def test_a_plain_sequence_is_written_out_and_loads_as_it_is(here, kind, prefix):
    layers, shape, exact = SEQUENCES[kind]
    torch.manual_seed(0)
    net = nn.Sequential(*layers).eval()
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    ck = _checkpoint({f"{prefix}{k}": v for k, v in net.state_dict().items()})
    path = write_task_file(ck, "x_task.py")
    _fill(path, data="return (torch.zeros(1), torch.zeros(1)), None")
    task = load_task("x_task.py")
    loaded = load_checkpoint("x.pt", task)
    assert list(loaded.weights) == list(net.state_dict())
    if exact:
        x = torch.randn(shape) if shape else torch.tensor([[1, 2, 10]])
        assert torch.equal(task.model.eval()(x), net(x))
    else:
        assert ">>> check" in path.read_text()


def _convolutional(width: int = 4) -> nn.Sequential:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)]
    return nn.Sequential(
        *block(1, width), nn.MaxPool2d(2), *block(width, 2 * width), *block(2 * width, 4 * width), *head
    )


def test_a_usual_net_is_recognized_to_the_last_layer(here):
    net = _convolutional()
    path = write_task_file(_checkpoint(net.state_dict()), "x_task.py")
    _fill(path, data="return (torch.zeros(1), torch.zeros(1)), None")
    assert repr(load_task("x_task.py").model) == repr(net)


@pytest.mark.parametrize(
    "net",
    [
        nn.ModuleDict({"fc": nn.Linear(2, 2)}),
        nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 2))),
        nn.Sequential(nn.LSTM(3, 4)),
        nn.Sequential(nn.Linear(2, 4), nn.MultiheadAttention(4, 2)),
    ],
)
def test_other_models_are_left_to_the_user(here, net):
    ck = _checkpoint(net.state_dict())
    assert guess(ck).layers == ()
    path = write_task_file(ck, "x_task.py")
    with pytest.raises(TaskError, match=r"x_task.py, line \d+: NotImplementedError: fill in data\(\)"):
        load_task("x_task.py")
    _fill(path, data="return (torch.zeros(1), torch.zeros(1)), None")
    with pytest.raises(TaskError, match=r"fill in model\(\): the class that wrote this checkpoint"):
        load_task("x_task.py")


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"0.weight": (2, 2), "5.scale": (2,)},
        {"0.weight": (0, 0)},
        {"0.weight": (2, 2, 2, 2, 2, 2)},
        {"0.bias": (2,)},
        {"0.weight": (5,), "0.bias": (5,), "0.running_mean": (4,), "0.running_var": (4,)},
        {"0.weight": (4, 2), "0.bias": (3,)},
        {"999999999.weight": (2, 2)},
    ],
)
def test_odd_shapes_are_no_sequence(weights):
    assert sequential_layers(weights) == ()


# What it looks like -------------------------------------------------------------------------------------------


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.block = nn.ModuleList([nn.Conv2d(8, 8, 3)])
        self.head = nn.Linear(8, 10)
        self.last_of_all = nn.Linear(8, 64)


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_emb = nn.Embedding(99, 8)
        self.tok_emb = nn.Embedding(50, 8)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16)])
        self.lm_head = nn.Linear(8, 50)


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(13, 32)
        self.fc2 = nn.Linear(32, 1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 4)
        self.out = nn.Linear(4, 2)


class Series(nn.Module):
    """Values go through a linear layer that is called embed: no table of tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.pos_emb = nn.Parameter(torch.zeros(48, 8))
        self.enc = nn.TransformerEncoderLayer(8, 2, 16)
        self.head = nn.Linear(8, 36)


class Pixels(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.head = nn.Conv2d(8, classes, 1)


@pytest.mark.parametrize(
    ("net", "data", "inputs", "classes", "remark"),
    [
        (Vision, "images", 3, 10, ""),
        (Language, "tokens", 50, 50, "attention layers"),
        (Rows, "rows", 13, 1, ""),
        (Recurrent, "sequences", 6, 2, "rnn: nn.LSTM(6, 4)"),
        (Series, "sequences", 1, 36, "attention layers"),
        (Pixels, "images", 3, 4, "BatchNorm layers"),
        (lambda: nn.ModuleDict({"a": nn.BatchNorm1d(2)}), "unknown", None, None, "BatchNorm layers"),
    ],
)
def test_inputs_and_outputs_from_names_and_shapes(here, net, data, inputs, classes, remark):
    found = guess(_checkpoint(net().state_dict()))
    assert (found.data, found.inputs, found.classes) == (data, inputs, classes)
    assert any(remark in r for r in (*found.remarks, ""))


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (Pixels, ["y (n, height, width) int64, below 4", "nn.CrossEntropyLoss(),", "ignore_index=, weight="]),
        (lambda: Pixels(1), ["y (n, 1, height, width) float32", "nn.BCEWithLogitsLoss() for two classes"]),
        (Series, ["X (n, length, 1) float32", "nn.MSELoss() for regression"]),
        (
            lambda: nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 6)),
            ["(n, 6) float32 for several labels at once", "nn.BCEWithLogitsLoss() for several labels at once"],
        ),
    ],
)
def test_the_target_and_the_loss_are_those_of_the_last_layer(here, net, said):
    text = task_file_text(_checkpoint(net().state_dict()), Path("x_task.py"))
    assert [s for s in said if s not in text] == []


# Outputs at each pixel ----------------------------------------------------------------------------------------


def _unet(outputs: int, kernel: int = 3) -> nn.Module:
    """The names and shapes of a small U-Net: c1 takes what up1 gives beside what was skipped."""
    parts = {"inc": nn.Conv2d(3, 8, 3), "down1": nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16))}
    parts |= {"up1": nn.ConvTranspose2d(16, 8, 2, 2), "c1": nn.Sequential(nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8))}
    return nn.ModuleDict({**parts, "outc": nn.Conv2d(8, outputs, kernel)})


def _autoencoder() -> nn.Module:
    down = nn.Sequential(nn.Conv2d(1, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2))
    return nn.ModuleDict(
        {"encoder": down, "decoder": nn.Sequential(nn.ConvTranspose2d(32, 8, 3), nn.ConvTranspose2d(8, 1, 3))}
    )


def _variational() -> nn.Module:
    code = {"fc_mu": nn.Linear(784, 8), "fc_var": nn.Linear(784, 8), "spread": nn.Linear(8, 784)}
    return nn.ModuleDict(
        {"encoder": nn.Conv2d(1, 16, 3), **code, "decoder": nn.Sequential(nn.ConvTranspose2d(16, 1, 3))}
    )


def _diffusion() -> nn.Module:
    return nn.ModuleDict({"time_mlp": nn.Sequential(nn.Linear(32, 64)), "emb": nn.Linear(64, 8), "net": _unet(3)})


def _generator() -> nn.Module:
    layers = [nn.ConvTranspose2d(100, 64, 4, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.ModuleDict({"main": nn.Sequential(*layers, nn.ConvTranspose2d(64, 3, 4, bias=False))})


DENSE = {
    "mask": (lambda: _unet(1), 3, 1),
    "several classes": (lambda: _unet(5), 3, 5),
    "more classes than channels": (lambda: _unet(21, 1), 3, 21),
    "pictures": (lambda: _unet(3), 3, 3),
    "autoencoder": (_autoencoder, 1, 1),
    "variational": (_variational, 1, 1),
    "diffusion": (_diffusion, 3, 3),
    "generator": (_generator, 100, 3),
    "denoiser": (lambda: nn.ModuleDict({"net": nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 3, 3))}), 3, 3),
    "signals": (lambda: nn.ModuleDict({"net": nn.Sequential(nn.Conv1d(2, 8, 3), nn.Conv1d(8, 2, 3))}), 2, 2),
}


@pytest.mark.parametrize("kind", list(DENSE))
def test_a_last_convolution_gives_the_outputs_of_each_pixel(here, kind):
    net, inputs, outputs = DENSE[kind]
    found = guess(_checkpoint(net().state_dict()))
    assert (found.dense, found.inputs, found.classes) == (True, inputs, outputs)


@pytest.mark.parametrize("kind", ["mask", "several classes", "pictures", "autoencoder"])
def test_so_it_does_in_the_order_of_safetensors(here, kind):
    from safetensors.torch import save_file

    net, inputs, outputs = DENSE[kind]
    save_file({k: v.clone() for k, v in net().state_dict().items()}, "x.safetensors")
    found = guess(read_checkpoint("x.safetensors"))
    assert (found.dense, found.inputs, found.classes) == (True, inputs, outputs)


@pytest.mark.parametrize(
    "net",
    [
        Vision,
        lambda: nn.ModuleDict({"conv1": nn.Conv2d(3, 8, 3), "fc": nn.Linear(8, 10), "layer1": nn.Conv2d(8, 4, 3)}),
        lambda: nn.ModuleDict({"features": nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))}),
        lambda: nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))}),
    ],
)
def test_classifiers_and_backbones_are_not_dense(here, net):
    assert not guess(_checkpoint(net().state_dict())).dense


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (lambda: _unet(3), ["y (n, 3, height, width) float32: X itself", "y (n, height, width) int64, below 3, where"]),
        (lambda: _unet(3), ["nn.MSELoss(),", "nn.CrossEntropyLoss() for classes", "train = X, X"]),
        (_autoencoder, ["y (n, 1, height, width) float32: X itself", "nn.MSELoss(),", "('data', train=True"]),
        (
            lambda: _unet(5),
            ["y (n, height, width) int64, below 5", "nn.CrossEntropyLoss(),", "nn.MSELoss() for pictures"],
        ),
        (
            lambda: nn.ModuleDict({"fc1": nn.Linear(784, 20), "fc2": nn.Linear(20, 784)}),
            ["y (n, 784) float32: X itself", "y (n,) int64, below 784", "nn.MSELoss(),", "train = X, X"],
        ),
        (Rows, ["goes here instead of that line", "batch_loss=lambda model, batch: ...", 'rng="fixed"']),
    ],
)
def test_rebuilt_inputs_and_losses_of_whole_batches_are_told_of(here, net, said):
    text = task_file_text(_checkpoint(net().state_dict()), Path("x_task.py"))
    assert [s for s in said if s not in text] == []
    assert max(map(len, text.splitlines())) <= 120


def test_a_variational_autoencoder_from_the_template_to_a_loss(here):
    (here / "vae_of_this_test.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.fc1, self.fc2 = nn.Linear(6, 4), nn.Linear(2, 6)\n\n"
        "def loss(model, batch):\n    m, s = model.fc1(batch[0]).chunk(2, 1)\n"
        "    return (model.fc2(m + torch.randn_like(m) * s.exp()) - batch[0]).square().sum(1).mean()\n"
    )
    net = nn.ModuleDict({"fc1": nn.Linear(6, 4), "fc2": nn.Linear(2, 6)})
    path = write_task_file(_checkpoint(net.state_dict()), "x_task.py")
    _fill(
        path,
        model="from vae_of_this_test import Net; return Net()",
        data="X = torch.ones(8, 6); return (X, X), None",
    )
    lines = [line for line in path.read_text().splitlines() if "nn.MSELoss()," not in line]
    text = "\n".join(lines).replace("#   batch_loss=", "batch_loss=").replace('#   rng="fixed"', 'rng="fixed"')
    path.write_text(
        text.replace("lambda model, batch: ...", "vae_of_this_test.loss").replace(
            "import torch\n", "import torch\nimport vae_of_this_test\n", 1
        )
    )
    task = load_task("x_task.py")
    load_checkpoint("x.pt", task)
    with Objective(task) as objective:
        assert objective.evaluate().loss > 0


def test_the_order_of_safetensors_does_not_matter(here):
    from safetensors.torch import save_file

    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(11)], nn.Linear(4, 7))
    save_file({k: v.clone() for k, v in net.state_dict().items()}, "x.safetensors")
    found = guess(read_checkpoint("x.safetensors"))
    assert len(found.layers) == 12
    assert (found.inputs, found.classes) == (4, 7)


EYE = torch.eye(9)


def _resnet(blocks, bottleneck, first=(64, 3, 7, 7)):
    state = {"conv1.weight": torch.zeros(first), "bn1.weight": torch.zeros(64), "fc.weight": torch.zeros(10, 512)}
    for i, n in enumerate(blocks, 1):
        for j in range(n):
            state[f"layer{i}.{j}.conv1.weight"] = torch.zeros(64, 64, 3, 3)
            if bottleneck:
                state[f"layer{i}.{j}.conv3.weight"] = torch.zeros(64, 64, 1, 1)
    return state


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (_resnet((2, 2, 2, 2), False), "torchvision.models.resnet18(num_classes=10)"),
        (_resnet((3, 4, 6, 3), True), "torchvision.models.resnet50(num_classes=10)"),
        (
            {"state_dict": _resnet((1, 1, 1, 1), False), "arch": "resnet26", "metric": 0.5},
            "timm.create_model('resnet26'",
        ),
        (
            {"state_dict": _resnet((1, 1, 1, 1), False), "arch": "alexnet", "best_acc1": 1.0},
            "torchvision.models.alexnet(",
        ),
        (_resnet((2, 2, 2, 2), False, (64, 3, 3, 3)), "a variant for small images"),
        (
            {"patch_embed.proj.weight": torch.zeros(192, 3, 16, 16), "blocks.0.attn.qkv.weight": torch.zeros(576, 192)}
            | {"head.weight": torch.zeros(5, 192)},
            "timm.create_model('vit_tiny_patch16_224', num_classes=5)",
        ),
        (
            {
                "model": {"transformer.wte.weight": EYE, "lm_head.weight": EYE},
                "model_args": {"n_layer": 1},
                "iter_num": 5,
            },
            "GPT(GPTConfig(**SETTINGS))",
        ),
    ],
)
def test_well_known_models_are_named(here, content, line):
    ck = _checkpoint(content)
    text = task_file_text(ck, Path("x_task.py"))
    assert line in text
    compile(text, "x", "exec")


def test_settings_beside_the_weights_stand_in_the_file(here):
    settings = {"width": 32, "lr": float("inf"), "name": 'it\'s nan, "x"\n', "list": [float("nan"), None, True]}
    ck = _checkpoint({"state_dict": Rows().state_dict(), "args": settings})
    path = write_task_file(ck, "x_task.py")
    space: dict = {}
    exec(path.read_text(), space)
    assert space["SETTINGS"]["list"][0] != space["SETTINGS"]["list"][0]
    assert {**space["SETTINGS"], "list": 0} == {**settings, "list": 0}


# A user's way to the first picture ----------------------------------------------------------------------------


def test_a_users_own_class_from_init_to_a_loss(here):
    (here / "nets_of_this_test.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc1, self.fc2 = nn.Linear(13, 32), nn.Linear(32, 1)\n\n"
        "    def forward(self, x):\n        return self.fc2(self.fc1(x).relu())\n"
    )
    ck = _checkpoint({"state_dict": {f"net.{k}": v for k, v in Rows().state_dict().items()}, "epoch": 3})
    path = write_task_file(ck, default_task_file(ck))
    assert path == Path("x_task.py")
    _fill(
        path,
        model="from nets_of_this_test import Net; return Net()",
        data="return (torch.ones(8, 13), torch.ones(8, 1)), None",
    )
    task = load_task("x_task.py")
    load_checkpoint("x.pt", task)
    x, y = task.train
    assert task.loss is not None
    assert torch.isfinite(task.loss(task.model(x), y))


@pytest.mark.parametrize("form", ["ids and what follows", "dicts"])
def test_a_language_models_way_from_init_to_its_predictions(here, form):
    torch.manual_seed(0)
    (here / "language_of_this_test.py").write_text(
        "from torch import nn\n\nclass Bigram(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.tok_emb, self.lm_head = nn.Embedding(50, 8), nn.Linear(8, 50)\n\n"
        "    def forward(self, input_ids):\n        return self.lm_head(self.tok_emb(input_ids))\n"
    )
    net = nn.ModuleDict({"tok_emb": nn.Embedding(50, 8), "lm_head": nn.Linear(8, 50)})
    ck = _checkpoint({"model": {f"module.{k}": v for k, v in net.state_dict().items()}})
    ids = torch.randint(50, (4, 9))
    torch.save(
        [(ids[:, :-1], ids[:, 1:])] if form.startswith("ids") else [{"input_ids": ids, "labels": ids}], "data.pt"
    )
    path = write_task_file(ck, default_task_file(ck))
    _fill(
        path,
        model="from language_of_this_test import Bigram; return Bigram()",
        data="return (torch.load('data.pt'),) * 2",
    )
    task = load_task("x_task.py")
    load_checkpoint("x.pt", task)
    logits = net["lm_head"](net["tok_emb"](ids[:, :-1])).flatten(0, 1)
    with Objective(task, "test") as objective:
        assert objective.evaluate().loss == pytest.approx(
            nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item(), rel=1e-5
        )  # float32, summed in another order
        assert torch.equal(objective.predictions()[1], ids[:, 1:].flatten())


def _tied_language_model(kept: str) -> dict[str, torch.Tensor]:
    blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16)])
    others = {"tok": nn.Embedding(50, 8), "wpe": nn.Embedding(99, 8), "head": nn.Linear(8, 50, bias=False)}
    whole = nn.ModuleDict({**others, "blocks": blocks}).state_dict()
    return {k: v for k, v in whole.items() if k.startswith(("blocks", "wpe", kept))}


@pytest.mark.parametrize("kept", ["tok", "head"])
def test_a_tied_language_model_is_one_whichever_name_safetensors_kept(here, kept):
    from safetensors.torch import save_file

    save_file({k: v.clone() for k, v in _tied_language_model(kept).items()}, "x.safetensors")
    found = guess(read_checkpoint("x.safetensors"))
    assert (found.data, found.inputs, found.classes) == ("tokens", 50, 50)
    assert any("one matrix of tokens" in r for r in found.remarks)


def test_features_with_positions_are_no_tokens(here):
    state = _tied_language_model("head") | {"project.weight": torch.zeros(8, 13)}
    assert guess(_checkpoint(state)).data != "tokens"


def test_tied_weights_are_counted_once(here):
    table, out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    out.weight = table.weight
    text = describe_checkpoint(_checkpoint(nn.Sequential(table, out).state_dict()))
    assert text.startswith("x.pt holds 2 tensors (1 tied), 24 parameters ")


@pytest.mark.filterwarnings("ignore")
def test_a_transformers_folder_names_its_auto_class(here):
    import transformers

    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=50, num_labels=4
    )
    net = transformers.BertForSequenceClassification(config)
    net.save_pretrained("runs/bert")
    Path("tasks").mkdir()
    path = write_task_file(read_checkpoint("runs/bert"), "tasks/bert_task.py")
    text = path.read_text()
    assert "AutoModelForSequenceClassification.from_config(" in text
    assert "# - architecture BertForSequenceClassification" in text
    with pytest.raises(TaskError, match=r"fill in data\(\): rows with input_ids"):
        load_task("tasks/bert_task.py")
    rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor(i % 4)} for i in range(6)]
    torch.save(rows, "rows.pt")
    path.write_text(
        text.replace(
            "train = test = collator = None", "import torch; train = test = torch.load('rows.pt'); collator = None"
        )
    )
    task = load_task("tasks/bert_task.py")
    load_checkpoint("runs/bert", task)
    assert torch.equal(task.model.classifier.weight, net.classifier.weight)


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_checkpoint_shows_its_hyper_parameters(here):
    content = {
        "state_dict": {"net.weight": torch.ones(1, 3), "net.bias": torch.ones(1)},
        "pytorch-lightning_version": "2.6.0",
        "hyper_parameters": {"width": 3},
        "optimizer_states": [],
        "global_step": 5,
        "epoch": 1,
    }
    (here / "module_of_this_test.py").write_text(
        "import lightning, torch\n\nclass Module(lightning.LightningModule):\n    def __init__(self, width):\n"
        "        super().__init__()\n        self.net = torch.nn.Linear(width, 1)\n\n"
        "    def training_step(self, batch, index):\n        return self.net(batch[0]).square().mean()\n"
    )
    ck = _checkpoint(content, "x.ckpt")
    path = write_task_file(ck, "x_task.py")
    assert "SETTINGS = {'width': 3}" in path.read_text()
    loader = "torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 3)))"
    _fill(
        path,
        module="from module_of_this_test import Module; return Module(**SETTINGS)",
        data=f"import torch; loader = {loader}; return {{'train': loader, 'test': loader}}",
    )
    task = load_task("x_task.py")
    load_checkpoint("x.ckpt", task)


# The file -----------------------------------------------------------------------------------------------------


def test_an_existing_file_is_kept_without_force(here):
    ck = _checkpoint(Rows().state_dict())
    Path("x_task.py").write_text("mine")
    with pytest.raises(CheckpointError, match=r"x_task.py exists; pass --force"):
        write_task_file(ck, "x_task.py")
    assert Path("x_task.py").read_text() == "mine"
    write_task_file(ck, "x_task.py", force=True)
    assert "@task" in Path("x_task.py").read_text()
    with pytest.raises(CheckpointError, match=r"cannot be written"):
        write_task_file(ck, "nowhere/x_task.py")
    with pytest.raises(CheckpointError, match=r"is no Python file"):
        write_task_file(ck, "x.txt")
    assert sorted(p.name for p in here.iterdir()) == ["x.pt", "x_task.py"]


def test_of_a_gans_file_all_optimizers_are_shown_and_the_next_commands_choose_its_weights_again(here):
    net = nn.Linear(3, 2)
    g, d = torch.optim.Adam(net.parameters(), lr=0.25), torch.optim.SGD(net.parameters(), lr=0.5)
    content = {"netG": net.state_dict(), "netD": net.state_dict(), "optG": g.state_dict(), "optD": d.state_dict()}
    torch.save(content, "gan.pt")
    ck = read_checkpoint("gan.pt", weights="netG")
    told = describe_checkpoint(ck)
    assert "optimizer optG: 1 group, lr 0.25" in told
    assert "optimizer optD: 1 group, lr 0.5" in told
    for command in next_commands(ck, "gan_task.py"):
        assert "gan.pt --weights netG" in command


def test_the_header_holds_the_next_commands(here):
    Path("my runs").mkdir()
    ck = _checkpoint(Rows().state_dict(), "my runs/last one.pt")
    name = default_task_file(ck)
    assert name == "last_one_task.py"
    text = write_task_file(ck, name).read_text()
    init, check, probe = next_commands(ck, name)
    assert shlex.split(init) == ["landscape", "init", "my runs/last one.pt", "-o", name]
    assert f"# 2. {check}\n" in text
    assert f"# 3. {probe}\n" in text
    assert shlex.split(probe)[2:5] == ["my runs/last one.pt", "--task", name]


NASTY = "x\nimport os; os.system('touch ran')\n#"


@pytest.mark.filterwarnings("ignore")
def test_a_transformers_folder_with_a_head_of_no_auto_class_names_its_architecture(here):
    import transformers

    config = transformers.SegformerConfig(num_channels=1, num_encoder_blocks=1, depths=[1], sr_ratios=[1],
                                          hidden_sizes=[4], patch_sizes=[3], strides=[2], num_attention_heads=[1],
                                          mlp_ratios=[1], decoder_hidden_size=4, num_labels=3)  # fmt: skip
    net = transformers.SegformerForSemanticSegmentation(config)
    net.save_pretrained("seg")
    path = write_task_file(read_checkpoint("seg"), "seg_task.py")
    text = path.read_text()
    assert "#   pixel_values, labels, and what else its forward takes" in text
    assert "Tokenizer" not in text
    rows = [{"pixel_values": torch.randn(1, 8, 8), "labels": torch.randint(3, (8, 8))} for _ in range(3)]
    torch.save(rows, "rows.pt")
    path.write_text(text.replace("collator = None", "collator = None; import torch; train = torch.load('rows.pt')", 1))
    task = load_task("seg_task.py")
    load_checkpoint("seg", task)
    loss = net.eval()(**{k: torch.stack([r[k] for r in rows]) for k in rows[0]}).loss
    with Objective(task) as objective:
        assert objective.evaluate().loss == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["None", "pipeline", "Own"])
def test_an_architecture_that_is_no_class_of_transformers_is_not_imported(here, name):
    Path("f").mkdir()
    torch.save(Rows().state_dict(), "f/pytorch_model.bin")
    Path("f/config.json").write_text(json.dumps({"architectures": [name], "auto_map": {"AutoModel": "own.Own"}}))
    text = write_task_file(read_checkpoint("f"), "x_task.py").read_text()
    assert "from transformers import AutoConfig, AutoModel\n" in text
    assert "AutoModel.from_config(" in text


@pytest.mark.parametrize("quote", ["'", '"', '"""', "\\"])
def test_names_and_facts_of_the_file_are_never_code(here, quote):
    nasty = NASTY + quote
    state = {nasty: torch.ones(2, 2), f"{nasty}.weight": torch.ones(3, 2), f"b{nasty}.fc.weight": torch.ones(2, 2)}
    content = {
        "state_dict": state,
        "args": {nasty: nasty},
        "arch": nasty,
        "metric": 1,
        "config": {"architectures": [nasty], "problem_type": nasty},
    }
    for extra in ({}, {"pytorch-lightning_version": nasty, "hyper_parameters": {nasty: [nasty]}}):
        ck = _checkpoint({**content, **extra})
        path = write_task_file(ck, "x_task.py", force=True)
        with pytest.raises(TaskError, match="fill in"):
            load_task("x_task.py")
        assert not Path("ran").exists()
        assert "\n" not in describe_checkpoint(ck).split("\n")[1].strip()
        assert all(line.isprintable() for line in path.read_text().split("\n"))


def test_a_folder_whose_config_is_nasty(here):
    Path("f").mkdir()
    torch.save(Rows().state_dict(), "f/pytorch_model.bin")
    config = {"architectures": ["BertForMaskedLM"], "problem_type": NASTY}
    Path("f/config.json").write_text(json.dumps(config))
    path = write_task_file(read_checkpoint("f"), "x_task.py")
    assert all(line.isprintable() for line in path.read_text().split("\n"))
    compile(path.read_text(), "x", "exec")


# The description ----------------------------------------------------------------------------------------------


def test_the_description_is_short_and_complete(here):
    net = _convolutional()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.25)
    net(torch.ones(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    content = {"model": net.state_dict(), "ema": net.state_dict(), "optimizer": optimizer.state_dict()}
    text = describe_checkpoint(_checkpoint({**content, "step": 7, "epoch": 2, "loss": "focal"}))
    parameters = sum(p.numel() for p in net.parameters())
    assert text.startswith(f"x.pt holds 20 tensors, {parameters:,} parameters (float32; ")
    assert "for images with 1 channel, 10 outputs:" in text
    assert "(4, 1, 3, 3)" in text
    assert "(10, 16)" in text
    assert "... 11 more ..." in text
    assert "optimizer: 1 group, lr 0.25, state: step, exp_avg, exp_avg_sq" in text
    assert "step 7, epoch 2" in text
    assert "beside the weights: loss='focal'" in text
    assert "note: averaged (EMA) weights are there too" in text
    assert len(text.split("\n")) < 20


def test_control_characters_never_reach_the_terminal(here):
    ck = _checkpoint({"state_dict": {"a\x1b[2Jb.weight": torch.ones(2, 2)}, "loss": "\x1b]0;x\x07"})
    assert "\x1b" not in describe_checkpoint(ck)
    assert "\x1b" not in task_file_text(ck, Path("x_task.py"))
