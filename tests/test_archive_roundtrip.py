"""Every Result comes back from an archive as it went in: numbers to the bit, dimensions, texts, subjects."""

from __future__ import annotations

import dataclasses
import importlib
import math
import typing
from dataclasses import dataclass

import numpy as np
import pytest

from landscape import results
from landscape.archive.reader import open_archive
from landscape.archive.save import save_archive
from landscape.archive.schema import Subject, dump_json, load_json, pack, unpack
from landscape.errors import ArchiveError
from landscape.results import Check, Cost, Result, StoredResult, array

for _module in results.RESULT_MODULES:
    importlib.import_module(_module)
SHIPPED = {kind: cls for kind, cls in results._KINDS.items() if cls.__module__ in set(results.RESULT_MODULES)}


@dataclass(frozen=True, kw_only=True)
class Odd(Result, kind="odd_roundtrip"):
    """One variable of each type, and dimensions that HDF5 or xarray would stumble over."""

    whole: int = array(default=3)
    flag: bool = array(default=True)
    text: str = array(default="zwölf")
    half: np.ndarray = array("n")
    small: np.ndarray = array("n")
    flags: np.ndarray = array("n", "m")
    phase: np.ndarray = array("n", units="seconds")
    words: np.ndarray = array("m", stderr="square", interval="flags")
    square: np.ndarray = array("k", "k", doc="the same dimension twice")
    rank: float = array(doc="named like the dimension of the next one")
    values: np.ndarray = array("rank")
    empty: np.ndarray = array("nothing", "n")
    place: np.ndarray = array("where", coordinate=True)
    nobody: np.ndarray | None = array("n", default=None)
    label: str = ""
    many: tuple[str, ...] = ()


def odd(rng: np.random.Generator) -> Odd:
    n, m = 4, 3
    return Odd(
        half=rng.random(n).astype(np.float16),
        small=rng.integers(0, 255, n).astype(np.uint8),
        flags=rng.random((n, m)) > 0.5,
        phase=rng.random(n) + 1j * rng.random(n),
        words=np.array(["a", "béta", ""]),
        square=rng.random((5, 5)).astype(np.float32),
        rank=math.inf,
        values=np.array([math.nan, -math.inf, 5e-324]),
        empty=np.zeros((0, n)),
        place=np.arange(3),
        label="1\x00\udc80 2",
        many=("x", "y"),
        status="partial",
        cost=Cost(products=7, passes=1.5, seconds=0.25),
        settings={"tol": 1e-3, "limit": math.inf, "layers": ["a"], "none": None, "on": True},
        checks=(Check("center", "warn", "off", 1.0, math.nan),),
        warnings=("one",),
    )


def random_result(cls: type[Result], rng: np.random.Generator) -> Result:
    """Build a result of any class from its declaration: random sizes, some of them 0, NaN and inf within."""
    sizes: dict[str, int] = {}
    hints = typing.get_type_hints(cls)
    values = {}
    for f in dataclasses.fields(cls):
        hint = hints[f.name]
        if "variable" in f.metadata:
            dims = f.metadata["variable"][0]
            shape = tuple(sizes.setdefault(d, int(rng.integers(0, 5))) for d in dims)
            if dims:
                data = rng.standard_normal(shape)
                data[rng.random(shape) < 0.2] = rng.choice([np.nan, np.inf, -np.inf])
                values[f.name] = data
            else:
                values[f.name] = int(rng.integers(0, 9)) if hint is int else float(rng.standard_normal())
        elif hint is str:
            values[f.name] = f"text {rng.integers(99)}"
    values.update(status="complete", cost=Cost(products=3), settings={"k": 1}, checks=(Check("a", "pass", ""),))
    return cls(**values)


def assert_same(a: Result, b: Result, *, units: bool = True) -> None:
    left, right = a.variables(), b.variables()
    assert list(left) == list(right)
    for name, one in left.items():
        other = right[name]
        assert one.dims == other.dims, name
        assert one.data.shape == other.data.shape, name
        if one.data.dtype.kind == "U":
            assert one.data.tolist() == other.data.tolist()
        else:
            assert one.data.dtype == other.data.dtype, name
            assert one.data.tobytes() == other.data.tobytes(), name
        described = ("doc", "coordinate", "stderr", "interval", *(["units"] if units else []))
        for key in described:
            assert getattr(one, key) == getattr(other, key), (name, key)
    assert dump_json(a.attributes()) == dump_json(b.attributes())


@pytest.mark.parametrize("kind", sorted(SHIPPED))
@pytest.mark.parametrize("seed", range(4))
def test_every_result_class_round_trips(kind, seed, tmp_path):
    cls = SHIPPED[kind]
    result = random_result(cls, np.random.default_rng(seed))
    path = save_archive(tmp_path / "run.h5", result)
    entry = open_archive(path).entries[0]
    assert entry.kind == kind
    assert type(entry.result) is cls
    assert_same(result, entry.result)


def test_odd_types_and_dimensions_round_trip(tmp_path):
    result = odd(np.random.default_rng(0))
    back = open_archive(save_archive(tmp_path / "run.h5", result)).entries[0].result
    assert type(back) is Odd
    assert_same(result, back)
    assert back.whole == 3
    assert back.flag is True
    assert back.text == "zwölf"
    assert back.nobody is None
    assert back.cost == result.cost
    assert back.settings["limit"] == math.inf
    assert back.checks[0].level == "warn"
    assert math.isnan(back.checks[0].limit)


def test_a_kind_unknown_here_keeps_every_number_and_survives_a_second_archive(tmp_path, monkeypatch):
    result = odd(np.random.default_rng(1))
    path = save_archive(tmp_path / "a.h5", result)
    monkeypatch.delitem(results._KINDS, "odd_roundtrip")
    stored = open_archive(path).entries[0].result
    assert isinstance(stored, StoredResult)
    assert np.array_equal(stored.flags, result.flags)
    assert stored.label == result.label
    # The unit "seconds" is stored by its symbol, so that xarray leaves the numbers alone.
    assert stored.variables()["phase"].units == "s"
    again = save_archive(tmp_path / "b.h5", stored)
    monkeypatch.undo()
    back = open_archive(again).entries[0]
    assert back.kind == "odd_roundtrip"
    assert_same(result, back.result)


def test_a_known_variable_that_is_missing_is_none_and_a_new_one_is_dropped(tmp_path, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Newer(Result, kind="versioned_roundtrip"):
        here: float = array()
        later: float = array()

    path = save_archive(tmp_path / "a.h5", Newer(here=1.0, later=2.0))

    @dataclass(frozen=True, kw_only=True)
    class Older(Result, kind="versioned_roundtrip"):
        here: float = array()
        gone: float = array()

    back = open_archive(path).entries[0].result
    assert (back.here, back.gone) == (1.0, None)


def test_the_subject_comes_back_equal(tmp_path):
    subject = Subject(
        checkpoint="runs/ä b.pt",
        fingerprint="ab12",
        task="digits.py:digits",
        step=7,
        epoch=None,
        name="sharp",
        facts={"device": "cpu", "seeds": (1, 2), "lr": np.float64(0.1), "samples": np.int64(3), "": math.inf},
    )
    result = SHIPPED["line"]
    path = save_archive(tmp_path / "run.h5", random_result(result, np.random.default_rng(0)), subject=subject)
    archive = open_archive(path)
    assert archive.subjects == (subject,)
    assert archive.entries[0].subject.facts["seeds"] == [1, 2]
    assert archive.select(subject=subject) == archive.select(subject="sharp") == list(archive.entries)
    assert archive.select(subject="other") == archive.select(kind="plane") == []
    assert archive.attributes["model_fingerprint"] == "ab12"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "text",
        '{"not": "json"}',
        "[1]",
        "nul \0 and \udcff",
        0,
        -(2**63),
        2**70,
        1.5,
        math.inf,
        True,
        None,
        [],
        [1, 2.5],
        ["a", "b"],
        {"a": {"b": [None, math.inf]}},
        "x" * 100_000,
        [["nested"]] * 20_000,
    ],
    ids=lambda v: repr(v)[:20],
)
def test_every_setting_comes_back_as_it_was(value, tmp_path):
    assert unpack(pack({"key": value})) == {"key": value}
    result = random_result(SHIPPED["line"], np.random.default_rng(0))
    path = save_archive(tmp_path / "run.h5", result, run={"key": value, "other": 1}, attributes={"mine": value})
    archive = open_archive(path)
    assert archive.run == {"key": value, "other": 1}
    assert archive.attributes["mine"] == value


def test_names_of_settings_that_hdf5_would_refuse_do_no_harm(tmp_path):
    names = ["", "json_attributes", "a/b", "nul\0", "\udcff", ".", "attributes", "x" * 70_000]
    odd_names = {name: [1] for name in names}
    result = random_result(SHIPPED["line"], np.random.default_rng(0))
    subject = Subject(facts=odd_names)
    archive = open_archive(save_archive(tmp_path / "run.h5", result, run=odd_names, subject=subject))
    assert len(archive.run) == len(names)
    assert archive.run["a/b"] == [1]
    assert archive.subjects == (subject,)
    assert_same(result, archive.entries[0].result)


def test_json_is_strict_and_keeps_what_is_not_finite():
    text = dump_json({"a": [math.nan, math.inf, -math.inf]})
    assert "NaN" not in text
    assert "Infinity" not in text
    nan, up, down = load_json(text)["a"]
    assert math.isnan(nan)
    assert (up, down) == (math.inf, -math.inf)


@dataclass(frozen=True, kw_only=True)
class Ragged(Result, kind="ragged_roundtrip"):
    a: np.ndarray = array("n")
    b: np.ndarray = array("n")


@dataclass(frozen=True, kw_only=True)
class Nameless(Result):
    a: float = array(default=1.0)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (Ragged(a=np.zeros(3), b=np.zeros(4)), "b has 4 entries along 'n'"),
        (Ragged(a=np.array([object()]), b=np.zeros(1)), "a has the type object"),
        (Ragged(a=np.array(["2020-01-01"], "datetime64[D]"), b=np.zeros(1)), "a has the type datetime64"),
        (Nameless(), 'kind="..."'),
    ],
)
def test_what_cannot_be_stored_is_named_and_nothing_is_written(result, words, tmp_path):
    with pytest.raises(ArchiveError, match=words.replace("(", r"\(").replace("...", r"\.\.\.")):
        save_archive(tmp_path / "run.h5", result)
    assert list(tmp_path.iterdir()) == []
