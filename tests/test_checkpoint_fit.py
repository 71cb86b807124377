"""Names are fitted onto the model, or it is said exactly what does not fit; nothing is half-loaded."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from landscape.checkpoint import load_checkpoint, read_checkpoint
from landscape.checkpoints.fit import fit
from landscape.errors import CheckpointError
from landscape.parameters import unwrap


class Net(nn.Module):
    def __init__(self, width: int = 5, classes: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.bn(self.conv(x)).mean((2, 3)))


class Holder(nn.Module):
    def __init__(self, name: str, inner: nn.Module):
        super().__init__()
        self.add_module(name, inner)


def _net(seed: int = 0, **kw) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(**kw)
        net.bn.running_mean.normal_()
        return net


def _compiled(model: nn.Module):
    return torch.compile(model, backend="eager")


def _save(state, tmp_path):
    torch.save(state, tmp_path / "x.pt")
    return tmp_path / "x.pt"


def _equal(model: nn.Module, other: nn.Module) -> bool:
    a, b = model.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


PREFIXES = ["module.", "_orig_mod.", "model.", "net.", "backbone.", "module._orig_mod.", "_orig_mod.module.", "a.b.c."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_common_prefix_in_the_file_is_removed_and_said(tmp_path, prefix):
    source, target = _net(0), _net(1)
    path = _save({prefix + k: v for k, v in source.state_dict().items()}, tmp_path)
    ck = load_checkpoint(path, target)
    assert _equal(target, source)
    assert list(ck.weights) == list(target.state_dict())
    assert any(f"prefix {prefix!r} removed" in n or "wrappers" in n for n in ck.notes)


@pytest.mark.parametrize(("old", "new"), list(itertools.product(["", "module.", "net."], ["model.", "a.b."])))
def test_a_prefix_of_the_model_is_added_and_said(tmp_path, old, new):
    source, target = _net(0), _net(1)
    wrapped = target
    for part in reversed(new.rstrip(".").split(".")):
        wrapped = Holder(part, wrapped)
    ck = load_checkpoint(_save({old + k: v for k, v in source.state_dict().items()}, tmp_path), wrapped)
    assert _equal(target, source)
    assert any(f"prefix {new!r} added" in n for n in ck.notes)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module"])
def test_wrappers_inside_the_names(tmp_path, wrapper):
    source, target = Holder("body", _net(0)), Holder("body", _net(1))
    state = {k.replace("body.", f"body.{wrapper}."): v for k, v in source.state_dict().items()}
    state["other.weight"] = torch.ones(1)
    target.other = nn.PReLU()
    ck = load_checkpoint(_save(state, tmp_path), target)
    assert _equal(target.body, source.body)
    assert any("set aside" in n for n in ck.notes)
    back = {k.replace(f".{wrapper}.", "."): v for k, v in state.items()}
    wrapped = Holder("body", Holder(wrapper, _net(2)))
    wrapped.other = nn.PReLU()
    load_checkpoint(_save(back, tmp_path), wrapped)
    assert _equal(getattr(wrapped.body, wrapper), source.body)


def test_names_that_wrappers_would_confuse_are_left_apart():
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "x": nn.ModuleDict({"module": nn.Linear(2, 2)})})
    state = model.state_dict()
    assert fit(state, model).notes == ()
    both = {"a.weight": torch.ones(2), "module.a.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"not in the model: 'module.a.weight'|not in the model: 'a.weight'"):
        fit(both, Holder("a", nn.PReLU(2)))


def test_wrapped_models_are_unwrapped(tmp_path):
    source = _net(0)
    path = _save(source.state_dict(), tmp_path)
    for wrap in (nn.DataParallel, _compiled, lambda m: _compiled(nn.DataParallel(m)), lambda m: m):
        target = _net(1)
        wrapped = wrap(target)
        ck = load_checkpoint(path, wrapped)
        assert unwrap(wrapped) is target
        assert _equal(target, source)
        assert ck.notes == ()


def test_a_task_lends_its_model(tmp_path):
    from landscape.tasks import Task

    source, target = _net(0), _net(1)
    load_checkpoint(_save(source.state_dict(), tmp_path), Task(target))
    assert _equal(target, source)


# What does not fit --------------------------------------------------------------------------------------------


def _refused(state, model, tmp_path) -> str:
    before = copy.deepcopy(model)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(_save(state, tmp_path), model)
    assert _equal(model, before), "nothing may be changed when something does not fit"
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path))
    return str(error.value)


def test_missing_extra_and_misshapen_names_with_their_shapes(tmp_path):
    state = _net(classes=4).state_dict()
    state["fc.weight"] = state.pop("conv.weight")
    line = _refused(state, _net(), tmp_path)
    assert "missing in the file: 'conv.weight' (5, 1, 3, 3)" in line
    assert "not in the model: 'fc.weight' (5, 1, 3, 3)" in line
    assert "'head.weight' (4, 5) in the file, (3, 5) in the model" in line
    assert "'head.bias' (4,) in the file, (3,) in the model" in line


def test_a_file_of_an_adapter_alone_is_told_from_another_models(tmp_path):
    net = _net()
    torch.save({k: v for k, v in net.state_dict().items() if k.startswith("head.")}, tmp_path / "adapter.pt")
    with pytest.raises(CheckpointError, match="Build the model that wrote"):
        load_checkpoint(tmp_path / "adapter.pt", net)
    net.requires_grad_(False).head.requires_grad_(True)
    with pytest.raises(CheckpointError, match=r"missing in the file: 'conv.*an adapter's file.*write it whole"):
        load_checkpoint(tmp_path / "adapter.pt", net)


def test_the_nearest_name_is_suggested(tmp_path):
    state = _net().state_dict()
    state["heads.weight"] = state.pop("head.weight")
    assert "'head.weight' (3, 5), the file has 'heads.weight' (3, 5)" in _refused(state, _net(), tmp_path)


def test_at_most_six_of_each_are_named(tmp_path):
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(10)])
    line = _refused({"x.weight": torch.ones(2)}, model, tmp_path)
    assert "'2.bias' (2,) and 14 more" in line
    assert "'3.weight'" not in line
    assert "not in the model: 'x.weight' (2,)" in line


def test_differences_are_named_under_the_best_prefix(tmp_path):
    state = {f"module.{k}": v for k, v in _net().state_dict().items() if k != "head.bias"}
    line = _refused(state, _net(), tmp_path)
    assert "missing in the file: 'head.bias' (3,)." in line
    assert "not in the model" not in line


def test_a_complete_part_beside_other_things_is_offered(tmp_path):
    state = {f"student.{k}": v for k, v in _net().state_dict().items()}
    state["criterion.weight"] = torch.ones(3)
    assert "pass --weights student. to take only that" in _refused(state, _net(1), tmp_path)
    target = _net(1)
    ck = load_checkpoint(tmp_path / "x.pt", target, weights="student.")
    assert _equal(target, _net())
    assert any("only the 9 of 10 names under 'student.'" in n for n in ck.notes)


def test_a_model_on_the_meta_device_is_refused(tmp_path):
    with torch.device("meta"):
        model = Net()
    with pytest.raises(CheckpointError, match="meta device"):
        load_checkpoint(_save(_net().state_dict(), tmp_path), model)


def test_packed_weights_are_refused(tmp_path):
    state = _net().state_dict()
    state["head.weight"] = state["head.weight"].to(torch.uint8)
    assert "'head.weight' is uint8 in the file and float32 in the model" in _refused(state, _net(), tmp_path)


# What is no difference ----------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_tied_weights_stored_once_are_filled_in(tmp_path, name):
    target = Tied()
    value = torch.randn(7, 4)
    ck = load_checkpoint(_save({name: value}, tmp_path), target)
    assert torch.equal(target.embed.weight, value)
    assert target.head.weight is target.embed.weight
    assert set(ck.weights) == {"embed.weight", "head.weight"}
    assert any("tied weights, stored once, filled in" in n for n in ck.notes)
    ck = load_checkpoint(_save({f"model.{name}": value}, tmp_path), target)
    assert any("'model.' removed" in n for n in ck.notes)


def test_safetensors_of_a_tied_model_gives_the_same_fingerprint(tmp_path):
    source, target = Tied(), Tied()
    save_model(source, str(tmp_path / "x.safetensors"))
    ck = load_checkpoint(tmp_path / "x.safetensors", target)
    whole = load_checkpoint(_save(source.state_dict(), tmp_path), target)
    assert ck.fingerprint == whole.fingerprint


def test_two_tensors_for_one_tie_are_refused(tmp_path):
    state = {"embed.weight": torch.zeros(7, 4), "head.weight": torch.ones(7, 4)}
    assert "ties 'embed.weight' and 'head.weight'" in _refused(state, Tied(), tmp_path)
    load_checkpoint(_save({k: torch.ones(7, 4) for k in state}, tmp_path), Tied())


def test_counters_missing_in_old_files(tmp_path):
    state = {k: v for k, v in _net(0).state_dict().items() if "num_batches" not in k}
    target = _net(1)
    target.bn.num_batches_tracked.fill_(9)
    ck = load_checkpoint(_save(state, tmp_path), target)
    assert torch.equal(target.bn.running_mean, _net(0).bn.running_mean)
    assert target.bn.num_batches_tracked == 9
    assert any("num_batches_tracked is not in the file for 1 BatchNorm" in n for n in ck.notes)
    assert "running_mean" in _refused({k: v for k, v in state.items() if "running_mean" not in k}, _net(1), tmp_path)


class Positions(nn.Module):
    def __init__(self, base: float = 2.0):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("angles", torch.arange(4.0) * base, persistent=False)


def test_buffers_that_the_model_makes_itself(tmp_path):
    state = {**Positions().fc.state_dict(prefix="fc."), "angles": torch.arange(4.0) * 2}
    ck = load_checkpoint(_save(state, tmp_path), Positions())
    assert any("makes itself left out: angles" in n for n in ck.notes)
    ck = load_checkpoint(_save(state, tmp_path), Positions(base=3.0))
    assert any("DIFFER from the file's; the model's are kept: angles" in n for n in ck.notes)
    assert set(ck.weights) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("stored", "own", "digits"),
    [
        (torch.bfloat16, torch.float32, False),
        (torch.float16, torch.float64, False),
        (torch.float64, torch.float32, True),
        (torch.float32, torch.bfloat16, True),
    ],
)
def test_dtypes_are_converted_and_said_and_kept_in_the_checkpoint(tmp_path, stored, own, digits):
    source, target = _net(0).to(stored), _net(1).to(own)
    ck = load_checkpoint(_save(source.state_dict(), tmp_path), target)
    assert target.head.weight.dtype == own
    assert torch.equal(target.head.weight, source.head.weight.to(own))
    assert ck.weights["head.weight"].dtype == stored
    said = next(n for n in ck.notes if "converted" in n)
    assert f"8 tensors are {str(stored)[6:]} in the file" in said
    assert ("loses digits" in said) == digits


def test_scalars_of_old_files_and_lazy_layers(tmp_path):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))
            self.fc = nn.LazyLinear(3)

    target = Scale()
    load_checkpoint(
        _save({"scale": torch.tensor([2.0]), "fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)}, tmp_path), target
    )
    assert target.scale.shape == ()
    assert target.scale == 2.0
    assert target.fc.weight.shape == (3, 4)


def test_older_names_are_translated_by_the_models_own_hooks(tmp_path):
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.utils.weight_norm(nn.Linear(3, 2))
    new = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    assert set(old.state_dict()) != set(new.state_dict())
    ck = load_checkpoint(_save(old.state_dict(), tmp_path), new)
    x = torch.randn(5, 3)
    torch.testing.assert_close(new(x), old(x))
    assert set(ck.weights) == set(new.state_dict())
    assert any("own loading hooks" in n for n in ck.notes)
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(_save({"weight_g": torch.ones(2, 1), "bias": torch.ones(2)}, tmp_path), new)
    assert all(torch.equal(v, before[k]) for k, v in new.state_dict().items())


def test_values_that_are_not_finite_are_said(tmp_path):
    state = _net().state_dict()
    state["head.bias"] = torch.tensor([1.0, float("nan"), 2.0])
    state["head.weight"] = torch.full((3, 5), 3e38)  # finite, though their sum is not
    ck = load_checkpoint(_save(state, tmp_path), _net())
    assert [n for n in ck.notes if "NaN" in n] == ["NaN or infinite values in head.bias"]


def test_what_was_read_is_not_read_again(tmp_path):
    path = _save({f"module.{k}": v for k, v in _net(0).state_dict().items()}, tmp_path)
    found = read_checkpoint(path)
    path.unlink()
    target = _net(1)
    assert any("'module.' removed" in n for n in load_checkpoint(found, target).notes)
    assert _equal(target, _net(0))


def test_reading_alone_changes_no_names(tmp_path):
    state = {f"module.{k}": v for k, v in _net().state_dict().items()}
    assert list(read_checkpoint(_save(state, tmp_path)).weights) == list(state)


@pytest.mark.filterwarnings("ignore")
def test_a_transformers_folder_in_its_published_form(tmp_path):
    """Experts lie there one by one, and in the model as one tensor."""
    import transformers

    torch.manual_seed(0)
    config = transformers.MixtralConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2,
                                        num_experts_per_tok=1)  # fmt: skip
    written, model = (transformers.MixtralForCausalLM(config) for _ in range(2))
    written.save_pretrained(tmp_path)
    weights = read_checkpoint(tmp_path).weights
    assert not set(weights) <= set(model.state_dict())  # else this test shows nothing
    random, level = torch.get_rng_state(), transformers.utils.logging.get_verbosity()
    fitted = fit(weights, model)
    assert torch.equal(torch.get_rng_state(), random)
    assert transformers.utils.logging.get_verbosity() == level
    assert "published form" in fitted.notes[0]
    assert fitted.weights.keys() == written.state_dict().keys()
    assert all(torch.equal(v, fitted.weights[k]) for k, v in written.state_dict().items())
    for partial in ({k: v for k, v in weights.items() if "lm_head" not in k}, {**weights, "more": torch.ones(1)}):
        with pytest.raises(CheckpointError, match="does not fit"):
            fit(partial, model)
