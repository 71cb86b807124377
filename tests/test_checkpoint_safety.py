"""A checkpoint is somebody else's file: nothing that it names is called, whatever form the trick takes."""

from __future__ import annotations

import argparse
import builtins
import collections
import contextlib
import dataclasses
import enum
import functools
import os
import pathlib
import pickle
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from landscape.checkpoint import read_checkpoint
from landscape.checkpoints.safe_pickle import read_inert, unpickle
from landscape.checkpoints.strangers import Inert
from landscape.errors import CheckpointError

WEIGHTS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([1.0, -1.0])}


class Call:
    """Pickles as a call of a function, as an attacker would write it."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call

    def __call__(self):
        """pickle wants a callable where the function of another call stands."""


class Rebuilt:
    """Pickles as torch does a tensor subclass, with a function of the attacker's as its rebuilder."""

    def __init__(self, function, *args):
        self.inner = (function, args)

    def __reduce__(self):
        function, args = self.inner
        return torch._tensor._rebuild_from_type_v2, (function, torch.Tensor, args, {})


class Built:
    """Pickles as a harmless object whose state is made by a call."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return argparse.Namespace, (), {"x": self.state}


def _attacks(marker: str) -> dict:
    command = f"touch {marker}"
    return {
        "os.system": Call(os.system, command),
        "eval": Call(builtins.eval, f"__import__('os').system({command!r})"),
        "exec": Call(builtins.exec, f"open({marker!r}, 'w')"),
        "open": Call(builtins.open, marker, "w"),
        "subprocess": Call(subprocess.check_output, ["touch", marker]),
        "run": Call(subprocess.run, ["touch", marker]),
        "nested": Call(dict, [("a", Call(list, [Call(os.system, command)]))]),
        "getattr": Call(Call(getattr, Call(__import__, "os"), "system"), command),
        "partial": Call(functools.partial(os.system, command)),
        "subclass": Rebuilt(os.system, command),
        "state": Built(Call(os.system, command)),
        "mkdir": Call(os.mkdir, marker),
        "torch.load": Call(torch.load, marker),
        "getattr of a class": Call(Call(getattr, pathlib.PosixPath(marker), "touch")),
        "touch": Call(pathlib.Path.touch, pathlib.Path(marker)),
    }


def _save(path: Path, content, how: str) -> None:
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=4))
    else:
        protocol = int(how[-1])
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=how.startswith("zip"))


# Refused where it would run programs; else the call is inert, and the weights beside it are read.
INERT = {"touch", "getattr of a class"}


@pytest.mark.parametrize("how", ["zip 2", "zip 4", "legacy 2", "legacy 4", "plain pickle"])
@pytest.mark.parametrize("name", list(_attacks("")))
def test_nothing_runs_that_stands_beside_the_weights(tmp_path, name, how):
    marker = tmp_path / "ran"
    attack = _attacks(str(marker))[name]
    _save(tmp_path / "x.pt", {"model": WEIGHTS, "extra": attack}, how)
    if name in INERT:
        ck = read_checkpoint(tmp_path / "x.pt")
        torch.testing.assert_close(ck.weights["fc.weight"], WEIGHTS["fc.weight"], rtol=0, atol=0)
        assert any("made inert, nothing of them was called: " in n and "pathlib" in n for n in ck.notes)
    else:
        with pytest.raises(CheckpointError, match=r"is refused: it asks to run .* which was not done"):
            read_checkpoint(tmp_path / "x.pt")
    assert not marker.exists()


@pytest.mark.parametrize("how", ["zip 2", "legacy 2", "plain pickle"])
@pytest.mark.parametrize("name", list(_attacks("")))
@pytest.mark.parametrize("place", ["whole", "state_dict", "one weight"])
def test_refused_when_the_weights_themselves_need_the_call(tmp_path, name, how, place):
    marker = tmp_path / "ran"
    attack = _attacks(str(marker))[name]
    content = {
        "whole": attack,
        "state_dict": {"state_dict": attack, "epoch": 3},
        "one weight": {"model": {**WEIGHTS, "fc.scale": attack}},
    }[place]
    _save(tmp_path / "x.pt", content, how)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(error.value)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
def test_the_attacks_would_work(tmp_path):
    """The oracle of the tests above: without our reader, each of these files does run its code."""
    for name, attack in _attacks(str(tmp_path / "ran")).items():
        if name == "torch.load":
            continue  # what it would run is in another file
        torch.save({"model": WEIGHTS, "extra": attack}, tmp_path / "x.pt")
        with contextlib.suppress(TypeError, AttributeError):  # after the call: its result is no tensor
            torch.load(tmp_path / "x.pt", weights_only=False)
        assert (tmp_path / "ran").exists(), name
        (tmp_path / "ran").rmdir() if (tmp_path / "ran").is_dir() else (tmp_path / "ran").unlink()


def test_a_state_cannot_reach_a_class_of_ours():
    """BUILD on a global would set attributes of the real class for the whole process."""
    for name in ("Tensor", "Size", "device"):
        data = b"\x80\x02ctorch\n" + name.encode() + b"\n}q\x00X\x03\x00\x00\x00badq\x01K\x01sb."
        with pytest.raises(pickle.UnpicklingError):
            unpickle(_stream(data))
        assert not hasattr(getattr(torch, name), "bad")
    with pytest.raises(pickle.UnpicklingError):
        unpickle(_stream(b"\x80\x02ccollections\nOrderedDict\n(K\x01K\x02e."))


def test_extension_codes_and_foreign_persistent_ids_are_refused():
    for data in (b"\x80\x02\x82\x01.", b"\x80\x02X\x03\x00\x00\x00abcQ.", b"\x80\x02(X\x05\x00\x00\x00outerK\x01tQ."):
        with pytest.raises(pickle.UnpicklingError):
            unpickle(_stream(data))


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((4, 3), (3, 1), 0), ((2, 3), (3, 1), 1), ((2, 3), (3, -1), 2), ((-2,), (1,), 0)]
)
def test_a_tensor_outside_its_storage_is_damage(tmp_path, size, stride, offset):
    class Outside:
        def __reduce__(self):
            storage = torch.arange(6.0).untyped_storage()
            typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
            return torch._utils._rebuild_tensor_v2, (typed, offset, size, stride, False, {})

    torch.save({"weight": Outside(), "x": argparse.Namespace()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "x.pt")


@dataclasses.dataclass
class Settings:
    width: int
    name: str


class Color(enum.Enum):
    RED = 1


class MyDict(dict):
    pass


class MyList(list):
    pass


Point = collections.namedtuple("Point", "x y")


def _strangers():
    return {
        "namespace": argparse.Namespace(lr=0.1, layers=[1, 2], out=pathlib.PurePosixPath("runs/a")),
        "path": pathlib.PurePosixPath("/data/set"),
        "config": Settings(64, "wide"),
        "color": Color.RED,
        "dict": MyDict(a=1, b={"c": 2.5}),
        "list": MyList([1, 2]),
        "class": nn.ReLU,
        "loss": np.float64(0.25),
        "count": np.int64(7),
        "flag": np.bool_(True),
        "text": np.str_("abc"),
        "array": np.arange(4, dtype=np.float32).reshape(2, 2),
        "big_endian": np.arange(3, dtype=">i4"),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, {"a": [1]}),
        "deque": collections.deque([1, 2], maxlen=5),
        "complex": 1 + 2j,
        "set": {1},
        "bytes": b"\x00\xff",
        "point": Point(1, 2),
    }


EXPECTED = {
    "namespace": {"lr": 0.1, "layers": [1, 2], "out": "runs/a"},
    "path": "/data/set",
    "config": {"width": 64, "name": "wide"},
    "dict": {"a": 1, "b": {"c": 2.5}},
    "list": [1, 2],
    "class": "torch.nn.modules.activation.ReLU",
    "loss": 0.25,
    "count": 7,
    "flag": True,
    "text": "abc",
    "array": [[0.0, 1.0], [2.0, 3.0]],
    "big_endian": [0, 1, 2],
    "fortran": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
    "counter": {"a": 2, "b": 1},
    "default": {"a": [1]},
    "deque": [1, 2],
    "set": [1],
}


@pytest.mark.parametrize("how", ["zip 2", "zip 4", "zip 5", "legacy 2", "plain pickle"])
def test_harmless_strangers_are_inert_named_and_their_plain_values_kept(tmp_path, how):
    _save(tmp_path / "x.pt", {"model": WEIGHTS, **_strangers()}, how)
    ck = read_checkpoint(tmp_path / "x.pt")
    assert set(ck.weights) == set(WEIGHTS)
    for name, value in WEIGHTS.items():
        assert torch.equal(ck.weights[name], value)
    for name, value in EXPECTED.items():
        assert ck.facts[name] == value, name
    assert not {"bytes", "complex"} & set(ck.facts)
    named = next(n for n in ck.notes if "made inert" in n)
    assert "argparse.Namespace" in named
    assert "torch._utils" not in named
    assert "numpy" not in named
    assert any("not kept" in n and "bytes" in n for n in ck.notes)


def test_omegaconf_and_slots_give_their_values():
    node = Inert("omegaconf.nodes.AnyNode", ())
    node.state = {"_metadata": Inert("x", ()), "_val": 3}
    config = Inert("omegaconf.dictconfig.DictConfig", ())
    config.state = {"_content": {"lr": node}, "_parent": None}
    slots = Inert("my.Slots", ())
    slots.state = (None, {"a": 1})
    from landscape.checkpoints.contents import plain_facts

    assert plain_facts({"c": config, "s": slots}) == ({"c": {"lr": 3}, "s": {"a": 1}}, [])


def test_every_dtype_and_view_comes_bit_for_bit(tmp_path):
    base = torch.randn(6, 8, dtype=torch.float64)
    tensors = {
        "f64.t": base.T,
        "f64.slice": base[1:4, ::2],
        "f64.expand": torch.tensor([[1.0], [2.0]]).expand(2, 5),
        "bf16.x": base.bfloat16(),
        "f16.x": base.half(),
        "f8.x": base.to(torch.float8_e4m3fn),
        "i8.x": base.to(torch.int8),
        "u16.x": torch.arange(3).to(torch.uint16),
        "bool.x": base > 0,
        "c64.x": base.to(torch.complex64),
        "zero.d": torch.tensor(3.5),
        "empty.x": torch.empty(0, 3),
        "parameter.x": nn.Parameter(torch.ones(2)),
    }
    for how in ("zip 2", "legacy 2", "plain pickle"):
        _save(tmp_path / "x.pt", {"model": tensors, "args": argparse.Namespace()}, how)
        with open(tmp_path / "x.pt", "rb") as file:
            got = read_inert(file).value["model"]
        for name, value in tensors.items():
            assert got[name].dtype == value.dtype, (how, name)
            assert got[name].shape == value.shape, (how, name)
            same = got[name].contiguous().reshape(-1).view(torch.uint8)
            assert torch.equal(same, value.detach().contiguous().reshape(-1).view(torch.uint8)), (how, name)
        if how != "plain pickle":  # which writes each storage anew
            assert got["f64.t"].data_ptr() == got["f64.slice"].untyped_storage().data_ptr(), how


def test_views_of_storages_as_the_first_pytorch_wrote_them(tmp_path):
    class View:
        def __init__(self, offset, size):
            self.place = (offset, size)

        def __reduce__(self):
            return torch._utils._rebuild_tensor, (self, 0, (self.place[1],), (1,))

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, View) and value in asked:
                offset, size = value.place
                return ("storage", torch.FloatStorage, "base", "cpu", 6, (f"view{offset}", offset, size))
            if isinstance(value, View):
                asked.append(value)
            return None

    asked: list = []
    with open(tmp_path / "x.pt", "wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {}):
            pickle.dump(value, file, protocol=2)
        Pickler(file, protocol=2).dump({"a.weight": View(1, 2), "b.weight": View(3, 3), "n": argparse.Namespace()})
        pickle.dump(["base"], file, protocol=2)
        file.write(struct.pack("<q", 6) + np.arange(6, dtype="<f4").tobytes())
    weights = read_checkpoint(tmp_path / "x.pt").weights
    assert weights["a.weight"].tolist() == [1.0, 2.0]
    assert weights["b.weight"].tolist() == [3.0, 4.0, 5.0]


def test_lazily_conjugated_tensors_are_not_read_wrongly(tmp_path):
    torch.save({"weight": torch.ones(2, dtype=torch.complex64).conj(), "a": argparse.Namespace()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="conjugate"):
        read_checkpoint(tmp_path / "x.pt")


def test_tensor_subclasses_come_as_plain_tensors(tmp_path):
    torch.save({"layer.weight": Sub(torch.ones(2, 2)), "layer.bias": torch.ones(2)}, tmp_path / "x.pt")
    ck = read_checkpoint(tmp_path / "x.pt")
    assert type(ck.weights["layer.weight"]) is torch.Tensor
    assert any("Sub" in n for n in ck.notes)


class Sub(torch.Tensor):
    pass


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_whole_module_is_refused_and_taken_with_trust(tmp_path, legacy, inside):
    net = Net()
    content = {"model": net, "epoch": 4} if inside else net
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"whole pickled object \(.*Net\).*state_dict\(\).*--trust-pickle"):
        read_checkpoint(tmp_path / "x.pt")
    ck = read_checkpoint(tmp_path / "x.pt", trust_pickle=True)
    assert torch.equal(ck.weights["fc.weight"], net.fc.weight.detach())
    assert any("--trust-pickle" in n for n in ck.notes)
    assert ck.epoch == (4 if inside else None)


def test_trust_is_not_used_where_it_is_not_needed(tmp_path):
    marker = tmp_path / "ran"
    torch.save({"model": WEIGHTS, "extra": Call(pathlib.Path.touch, marker)}, tmp_path / "x.pt")
    read_checkpoint(tmp_path / "x.pt", trust_pickle=True)
    assert not marker.exists()


def test_a_trusted_pickle_whose_classes_are_gone_says_where_to_run(tmp_path):
    torch.save(Net(), tmp_path / "whole.pt")
    name = Net.__module__.encode()
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "x.pt", "w") as other:
        for info in whole.infolist():
            other.writestr(info, whole.read(info).replace(name, b"q" * len(name)))
    with pytest.raises(CheckpointError, match=r"cannot be imported here"):
        read_checkpoint(tmp_path / "x.pt", trust_pickle=True)


def test_torchscript_is_refused_and_taken_with_trust(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x)

    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.trace(Twice(), torch.ones(1, 3)), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="TorchScript program"):
        read_checkpoint(tmp_path / "x.pt")
    assert set(read_checkpoint(tmp_path / "x.pt", trust_pickle=True).weights) == {"fc.weight", "fc.bias"}


def test_a_storage_that_lies_about_its_size_is_damage(tmp_path):
    torch.save(
        {"weight": torch.ones(4), "a": argparse.Namespace()}, tmp_path / "x.pt", _use_new_zipfile_serialization=False
    )
    data = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(data.replace(struct.pack("<q", 4), struct.pack("<q", 1 << 40)))
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "x.pt")
    # The pickle promises 2**30 numbers (the 4 of the storage, K\x04, becomes a long integer): nothing is allocated.
    place = data.index(b"cpu") + data[data.index(b"cpu") :].index(b"K\x04")
    (tmp_path / "x.pt").write_bytes(data[:place] + b"J\x00\x00\x00\x40" + data[place + 2 :])
    with pytest.raises(CheckpointError, match="larger than the file"):
        read_checkpoint(tmp_path / "x.pt")


def _stream(data: bytes):
    import io

    return io.BytesIO(data)
