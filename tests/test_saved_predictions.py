"""Files of saved predictions: every format gives the same numbers, and what is not clear is asked for, not guessed."""

from __future__ import annotations

import gzip
import os
import sys

import numpy as np
import pytest
import torch

from landscape.calibration.predictions import looks_saved, read_saved
from landscape.errors import MeasurementError

N, C = 40, 3


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(N, C)).round(6)
    y = rng.integers(0, C, N)
    np.savez("a.npz", logits=z, labels=y, other=np.arange(3))
    torch.save({"logits": torch.from_numpy(z), "targets": torch.from_numpy(y)}, "a.pt")
    header = "label,logit_0,logit_1,logit_2,note"
    rows = [f"{y[i]},{z[i, 0]:.6f},{z[i, 1]:.6f},{z[i, 2]:.6f},text {i}" for i in range(N)]
    text = "\n".join([header, *rows]) + "\n"
    with open("a.csv", "w", encoding="utf-8") as file:
        file.write(text)
    with open("a.tsv", "w", encoding="utf-8-sig") as file:  # as spreadsheets write it, with a byte order mark
        file.write(text.replace(",", "\t"))
    with gzip.open("a.csv.gz", "wt", encoding="utf-8") as file:
        file.write(text.replace(",", ";"))
    return z, y


def write(name: str, text: str) -> str:
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
    return name


# ------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize("name", ["a.npz", "a.pt", "a.csv", "a.tsv", "a.csv.gz"])
def test_every_format_gives_the_same_numbers(world, name):
    found = read_saved(name)
    assert found.kind == "logits"
    np.testing.assert_array_equal(np.asarray(found.scores), world[0])
    np.testing.assert_array_equal(np.asarray(found.labels), world[1])
    assert np.asarray(found.labels).dtype == np.int64
    assert set(found.given) == {"logits", "labels", "groups"}
    assert found.groups is None
    assert "labels from" in found.notes[0]
    assert looks_saved(name)


@pytest.mark.parametrize("lists", [False, True])
def test_parquet_holds_columns_or_lists(world, lists):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    z, y = world
    columns = {"probs": z.tolist()} if lists else {f"probs_{k}": z[:, k] for k in range(C)}
    parquet.write_table(pyarrow.table({"label": y, **columns, "name": ["x"] * N}), "a.parquet")
    found = read_saved("a.parquet")
    assert found.kind == "probabilities"
    np.testing.assert_array_equal(found.scores, z)
    np.testing.assert_array_equal(found.labels, y)


def test_without_pyarrow_the_line_says_what_to_install(world, monkeypatch):
    write("a.parquet", "")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        MeasurementError, match=r"needs pyarrow; install it with pip install 'landscape-probe\[parquet\]'"
    ):
        read_saved("a.parquet")


def test_columns_are_ordered_by_class_and_not_by_place(world):
    write("b.csv", "score2,score0,y,score1\n0.2,0.5,0,0.3\n0.7,0.1,2,0.2\n")
    found = read_saved("b.csv", probabilities="score", labels="y")
    assert found.scores.tolist() == [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]
    assert found.kind == "probabilities"


def test_columns_with_names_of_their_own_are_listed(world):
    z, y = world
    text = "id,true,neg,neu,pos\n" + "".join(f"{i},{y[i]},{z[i, 0]},{z[i, 1]},{z[i, 2]}\n" for i in range(N))
    path = write("named.csv", text)
    found = read_saved(path, labels="true", logits="neg, neu,pos")
    np.testing.assert_array_equal(np.asarray(found.scores), z)
    with pytest.raises(MeasurementError, match=r"no column 'p'.*listed in the order of the classes: --logits A,B,C"):
        read_saved(path, labels="true", logits="p")
    with pytest.raises(MeasurementError, match=r"no column 'nue' for the scores; it has id, true, neg"):
        read_saved(path, labels="true", logits="neg,nue,pos")
    with pytest.raises(MeasurementError, match="twice"):
        read_saved(path, labels="true", logits="neg,neg")


def test_text_called_npz_is_no_reason_to_run_a_pickle(world):
    with pytest.raises(MeasurementError, match=r"is no \.npz file") as told:
        read_saved(write("text.npz", "hello\n"))
    assert "pickle" not in str(told.value)


def test_a_single_column_is_a_binary_task_and_said_so(world):
    found = read_saved(write("b.csv", "p,label\n0.2,0\n0.7,1\n"))
    assert found.scores.tolist() == [0.2, 0.7]
    assert "one column: the probability of class 1 of a binary task" in found.notes
    np.savez("b.npz", logits=np.array([[0.5], [-1.0]]), labels=np.array([[1], [0]]))
    found = read_saved("b.npz")
    assert found.scores.shape == found.labels.shape == (2,)
    assert "one column: the logit of class 1 of a binary task" in found.notes


def test_whole_numbers_written_as_floats_are_labels(world):
    found = read_saved(write("b.csv", "p_0,p_1,label\n0.5,0.5,1.0\n0.7,0.3,0.0\n"))
    assert found.labels.tolist() == [1, 0]


def test_groups_are_read_where_they_are_named(world):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    z, y = world
    parquet.write_table(pyarrow.table({"label": y, "logits": z.tolist(), "who": np.arange(N) // 4}), "g.parquet")
    np.savez("g.npz", logits=z, labels=y, who=np.arange(N) // 4)
    rows = [f"{k // 4},{y[k]}," + ",".join(f"{v:.6f}" for v in z[k]) for k in range(N)]
    write("g.csv", "\n".join(["who,label,logit_0,logit_1,logit_2", *rows]) + "\n")
    for name in ("g.parquet", "g.npz", "g.csv"):
        found = read_saved(name, groups="who")
        np.testing.assert_array_equal(found.groups, np.arange(N) // 4)
        np.testing.assert_array_equal(found.scores, z)
        assert "groups from 'who'" in found.notes[0]
        assert read_saved(name).groups is None
    with pytest.raises(MeasurementError, match=r"no 'patient' \(--groups\)"):
        read_saved("g.npz", groups="patient")


def test_only_the_arrays_that_are_asked_for_are_read(world):
    np.savez("b.npz", logits=world[0], labels=world[1], junk=np.array([object()], dtype=object))
    assert read_saved("b.npz").kind == "logits"  # reading `junk` would raise


def test_a_checkpoint_is_not_taken_for_predictions(world):
    torch.save({"model": {"w": torch.ones(2)}, "epoch": 3}, "ckpt.pt")
    torch.save(torch.nn.Linear(2, 2).state_dict(), "plain.pt")
    write("broken.pt", "no zip")
    assert [looks_saved(n) for n in ("ckpt.pt", "plain.pt", "broken.pt", "a.h5")] == [False] * 4


# ------------------------------------------------------------------------------------------------ bad input

BAD = {
    "both": ("b.npz", {}, r"b\.npz holds logits and probs: say which to take with --logits NAME or --probabilities"),
    "neither": ("c.npz", {}, r"neither logits nor probabilities by name.*--logits NAME.*it holds scores, y"),
    "no labels": ("d.npz", {}, r"no labels by name; it holds logits; say what the labels are called with --labels"),
    "no such scores": ("a.npz", {"logits": "z"}, r"no 'z' \(--logits\); it holds logits, labels, other"),
    "no such labels": ("a.npz", {"labels": "y"}, r"no 'y' \(--labels\)"),
    "both options": ("a.npz", {"logits": "logits", "probabilities": "p"}, "one of them"),
    "objects": ("o.npz", {}, r"o\.npz can't be read.*allow_pickle"),
    "no file": ("nowhere.csv", {}, r"no predictions at nowhere\.csv"),
    "folder": ("folder.npz", {}, "it is a folder"),
    "single array": ("x.npy", {}, r"x\.npy is none of .*numpy\.savez"),
    "an .npy called .npz": ("y.npz", {}, "a single array without a name"),
    "truncated": ("cut.npz", {}, r"cut\.npz can't be read"),
    "no tensors": ("list.pt", {}, r"list\.pt holds a list, expected a dict of tensors"),
    "not an array": ("text.pt", {}, r"'logits' in text\.pt is a str, expected a tensor"),
    "empty file": ("empty.csv", {}, r"empty\.csv is empty; expected a header"),
    "no rows": ("header.csv", {}, "has a header and no rows"),
    "text in a cell": ("cell.csv", {}, r"expected a number, got 'x' in line 3, column 'p_1'"),
    "empty cell": ("gap.csv", {}, r"got an empty cell in line 2, column 'p_0'"),
    "short line": ("short.csv", {}, r"line 3 has 2 cells, the header has 3"),
    "a class is missing": ("hole.csv", {}, r"none for class 1: .*p_0, p_2"),
    "a name twice": ("twice.csv", {}, r"the column 'p_0' twice"),
    "a label that is no number": ("half.csv", {}, r"the label in row 1 is 0\.5, expected a class index"),
    "a label that is missing": ("nan.csv", {}, r"the label in row 0 is nan"),
    "bytes": ("bytes.csv", {}, r"bytes\.csv can't be read as text"),
    "damaged parquet": ("bad.parquet", {}, r"bad\.parquet can't be read as parquet"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(world, case):
    z, y = world
    np.savez("b.npz", logits=z, probs=z, labels=y)
    np.savez("c.npz", scores=z, y=y)
    np.savez("d.npz", logits=z)
    np.savez("o.npz", logits=np.array([object()], dtype=object), labels=y)
    np.save("x.npy", z)
    os.link("x.npy", "y.npz")
    os.mkdir("folder.npz")
    with open("a.npz", "rb") as whole, open("cut.npz", "wb") as cut:
        cut.write(whole.read()[:-300])
    torch.save([1, 2], "list.pt")
    torch.save({"logits": "no", "labels": torch.ones(2)}, "text.pt")
    with open("bytes.csv", "wb") as file:
        file.write(b"\xff\xfe\x00label")
    for name, text in {
        "empty.csv": "", "header.csv": "p_0,p_1,label\n", "cell.csv": "p_0,p_1,label\n1,0,0\n1,x,0\n",
        "gap.csv": "p_0,p_1,label\n,0,0\n", "short.csv": "p_0,p_1,label\n1,0,0\n1,0\n",
        "hole.csv": "p_0,p_2,label\n1,0,0\n", "twice.csv": "p_0,p_0,label\n1,0,0\n",
        "half.csv": "p_0,p_1,label\n1,0,0\n1,0,0.5\n", "nan.csv": "p_0,p_1,label\n1,0,nan\n", "bad.parquet": "no",
    }.items():  # fmt: skip
        write(name, text)
    path, options, said = BAD[case]
    with pytest.raises(MeasurementError, match=said) as caught:
        read_saved(path, **options)
    assert "\n" not in str(caught.value)


def test_uneven_and_empty_cells_of_parquet_are_named(world):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"label": [0, 1], "p": [[0.5, 0.5], [1.0]]}), "uneven.parquet")
    with pytest.raises(MeasurementError, match=r"row 1 of the column 'p' has 1 numbers, row 0 has 2"):
        read_saved("uneven.parquet")
    parquet.write_table(pyarrow.table({"label": [0, None], "p": [0.5, 0.5]}), "empty.parquet")
    with pytest.raises(MeasurementError, match=r"row 1 of the column 'label' is empty"):
        read_saved("empty.parquet")
    parquet.write_table(pyarrow.table({"label": ["cat", "dog"], "p": [0.5, 0.5]}), "words.parquet")
    with pytest.raises(MeasurementError, match=r"the column 'label' holds string, expected numbers"):
        read_saved("words.parquet")


def test_a_pickle_in_a_pt_file_is_not_run(world, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch left_behind",)

    torch.save({"logits": Evil(), "labels": torch.ones(2)}, "evil.pt")
    assert not looks_saved("evil.pt")
    with pytest.raises(MeasurementError, match="weights_only=True"):
        read_saved("evil.pt")
    assert not (tmp_path / "left_behind").exists()
