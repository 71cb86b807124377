"""What a sweep consists of: every combination once, with names, from lists or a file; mistakes said."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from landscape.errors import TrainingError
from landscape.probes.sweep.grid import Cell, grid, joined, named, read_cells
from landscape.probes.sweep.manifest import Manifest, claim, read_manifest, share

# ------------------------------------------------------------------------------------------------- the grid


def test_the_grid_is_every_combination_once_with_seeds_innermost():
    cells = grid(
        loss=["cross_entropy", "focal(gamma=2)"], schedule=["constant", "cosine"], batch_size=[32, "full"], seeds=3
    )
    assert len(cells) == 2 * 2 * 2 * 3
    assert len({json.dumps(c.axes, sort_keys=True) for c in cells}) == len(cells)
    assert [c.seed for c in cells[:4]] == [0, 1, 2, 0]
    assert [c.index for c in cells] == list(range(1, 25))


def test_names_are_unique_and_safe_and_labels_say_what_differs():
    cells = grid(loss=["0.9*cross_entropy + ramp(0, 0.1)*soft_ece", "cross_entropy"], vary={"path": ["a/b", "a b"]})
    names = [c.name for c in cells]
    assert len(set(names)) == len(names)
    assert all(not set(n) & set("/\\ :?<>|\"'()") and len(n) < 100 for n in names)
    assert cells[0].label == "0.9*cross_entropy+ramp(0,0.1)*soft_ece, path a/b"
    assert [c.label for c in grid(seeds=2)] == ["seed 0", "seed 1"]
    assert grid()[0].label == "seed 0"


def test_strings_come_in_one_form_however_they_are_typed():
    one, other = grid(loss=["focal( gamma = 2 )"])[0], grid(loss=["focal(gamma=2)"])[0]
    assert one == other


def test_the_default_optimizer_takes_the_rates_given_and_has_one_of_its_own():
    assert grid()[0].lr == 0.1
    assert [c.lr for c in grid(lr=[0.3, 1.0])] == [0.3, 1.0]
    assert grid(optimizer=["adam"])[0].lr is None


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"loss": []}, "loss lists nothing"),
        ({"lr": [0.1, 0.1]}, "lr lists 0.1 twice"),
        ({"batch_size": [0]}, "batch_size=0 must be"),
        ({"batch_size": ["half"]}, "or 'full'"),
        ({"seeds": [-1]}, "seed=-1"),
        ({"lr": [-0.1]}, "lr=-0.1 must be a positive number"),
        ({"lr": [float("nan")]}, "lr=nan"),
        ({"clip": 0}, "clip=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"schedule": ["cosine("]}, "can't be read"),
        ({"vary": {"hidden": []}}, "vary hidden lists nothing"),
    ],
)
def test_what_can_not_be_is_refused(lists, said):
    with pytest.raises(TrainingError, match=said):
        grid(**lists)


# ------------------------------------------------------------------------------------------------- from a file


def test_cells_come_from_json_lines_and_csv_alike(tmp_path):
    rows = [
        {"loss": "focal(gamma=2)", "optimizer": "adam", "batch_size": 32, "seed": 1, "settings": {"hidden": 4}},
        {"schedule": "cosine", "lr": 0.5, "batch_size": "full", "drive": {"weight_decay": "ramp(0, 0.1)"}},
    ]
    (tmp_path / "cells.json").write_text(json.dumps(rows))
    (tmp_path / "cells.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "cells.csv").write_text(
        "loss,optimizer,batch_size,seed,hidden,schedule,lr,drive.weight_decay\n"
        'focal(gamma=2),adam,32,1,4,,,\n,,full,,,cosine,0.5,"ramp(0, 0.1)"\n'
    )
    one, two, three = (read_cells(tmp_path / f"cells.{x}", epochs=3) for x in ("json", "jsonl", "csv"))
    assert one == two == three
    assert one[0].settings == {"hidden": 4}
    assert one[0].lr is None
    assert one[0].epochs == 3
    assert one[1].drive == {"weight_decay": "ramp(0, 0.1)"}
    assert one[1].optimizer == Cell().optimizer


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"los": "mse"}]', "cell 1: there is no 'los' in a cell; did you mean loss"),
        ('[{"lr": "fast"}]', "cell 1: lr='fast' must be a positive number"),
        ('[{"schedule": "cosine("}]', "cell 1: .*can't be read"),
        ("[]", "lists no cells"),
        ('{"loss": "mse"}', "lists no cells"),
        ("loss: mse", "no JSON"),
        ('[{"seed": 1}, {"seed": 1}]', "cells 1 and 2 are the same"),
    ],
)
def test_a_file_that_lists_no_cells_is_refused_by_its_cell(tmp_path, text, said):
    (tmp_path / "cells.json").write_text(text)
    with pytest.raises(TrainingError, match=said):
        read_cells(tmp_path / "cells.json")


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(TrainingError, match="can't be read"):
        read_cells(tmp_path / "none.json")


# ------------------------------------------------------------------------------------------------- whose folder


def manifest(**changes) -> Manifest:
    lists = {"loss": ["cross_entropy"], "seeds": 2, **changes}
    return Manifest("tasks.py:tiny", "abc", grid(**lists))


def test_a_folder_is_claimed_once_and_found_again(tmp_path):
    claim(tmp_path / "runs", manifest())
    there = read_manifest(tmp_path / "runs")
    assert there is not None
    assert there.fingerprint == manifest().fingerprint
    assert there.cells == manifest().cells
    claim(tmp_path / "runs", manifest(), resume=True)
    with pytest.raises(TrainingError, match="holds this sweep already; pass --resume"):
        claim(tmp_path / "runs", manifest())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 3}, "epochs of cell 1 is 20, here it is 3"),
        ({"seeds": (1, 2)}, "seed of cell 1 is 0, here it is 1 or 2"),
        ({"drive": {"clip": "ramp(5, 1)"}}, "drive.clip of cell 1 is None, here it is 'ramp\\(5, 1\\)'"),
        ({"loss": ["focal"]}, "loss of cell 1 is 'cross_entropy', here it is 'focal'"),
        ({"loss": [""]}, "loss of cell 1 is 'cross_entropy', here it is the task's own"),
        ({"clip": 1.0}, "clip of cell 1 is None, here it is 1.0"),
        ({"settings": {"sizes": [4, 8]}}, "sizes of cell 1 is None, here it is \\[4, 8\\]"),
    ],
)
def test_a_folder_of_another_sweep_is_refused_with_the_difference(tmp_path, changes, said):
    claim(tmp_path, manifest())
    with pytest.raises(TrainingError, match=f"holds another sweep: {said}"):
        claim(tmp_path, manifest(**changes), resume=True)


def test_a_folder_without_all_combinations_is_refused_by_the_cell(tmp_path):
    cells = grid(loss=["cross_entropy", "focal"], lr=[0.1, 0.2])
    claim(tmp_path, Manifest("tasks.py:tiny", "abc", named(cells[:3])))
    with pytest.raises(TrainingError, match=r"its cell 3 \(focal, lr 0.1\) is not among the 3 here"):
        claim(tmp_path, Manifest("tasks.py:tiny", "abc", named([*cells[:2], cells[3]])), resume=True)


def test_a_longer_sweep_extends_the_folder_and_leaves_what_is_there_in_its_place(tmp_path):
    claim(tmp_path, manifest())
    longer = manifest(loss=["focal", "cross_entropy"], seeds=3)
    with pytest.raises(
        TrainingError, match=r"holds 2 of these 6 cells already; pass --resume .*, and to add the other 4"
    ):
        claim(tmp_path, longer)
    extended = claim(tmp_path, longer, resume=True)
    assert extended.cells == joined(longer.cells, manifest().cells)
    assert [c.index for c in extended.cells] == [1, 2, 3, 4, 5, 6]
    assert [c.name for c in extended.cells[:2]] == [c.name for c in manifest().cells]
    assert len({c.name for c in extended.cells}) == 6
    assert {c.key for c in extended.cells} == {c.key for c in longer.cells}
    assert [c.label for c in extended.cells[:3]] == [
        "cross_entropy, seed 0",
        "cross_entropy, seed 1",
        "focal, seed 0",
    ]
    assert read_manifest(tmp_path) == extended == claim(tmp_path, longer, resume=True)
    # A job of the shorter one goes on with its own cells, by their new labels.
    assert claim(tmp_path, manifest(), resume=True) == extended
    assert joined(manifest().cells, extended.cells) == extended.cells[:2]


def test_jobs_that_extend_a_folder_at_once_agree(tmp_path):
    claim(tmp_path, manifest())
    longer = manifest(seeds=8)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: claim(tmp_path, longer, resume=True), range(8)))
    assert all(f.cells == found[0].cells for f in found)
    assert read_manifest(tmp_path) == found[0]


def test_a_changed_task_file_is_refused_unless_allowed(tmp_path):
    claim(tmp_path, manifest())
    other = Manifest("tasks.py:tiny", "def", manifest().cells)
    with pytest.raises(TrainingError, match="changed since the sweep"):
        claim(tmp_path, other, resume=True)
    claim(tmp_path, other, resume=True, changed=True)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(TrainingError, match=r"holds files that are no sweep's \(thesis.tex\)"):
        claim(tmp_path, manifest())


def test_a_damaged_manifest_is_said(tmp_path):
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(TrainingError, match="can't be read"):
        claim(tmp_path, manifest(), resume=True)


def test_shares_cover_all_cells_once():
    cells = named(Cell(seed=s) for s in range(7))
    for n in range(1, 9):
        found = [c.index for i in range(1, n + 1) for c in share(cells, f"{i}/{n}")]
        assert sorted(found) == list(range(1, 8))
    assert [c.index for c in share(cells, "3")] == [3]


@pytest.mark.parametrize("text", ["0/3", "4/3", "x", "1/0", "8", "1/2/3"])
def test_a_share_that_there_is_none_of_is_refused(text):
    with pytest.raises(TrainingError, match=r"share"):
        share(named(Cell(seed=s) for s in range(7)), text)
