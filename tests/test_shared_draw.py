"""A draw shared by several processes gives what one process alone finds, and ends in all of them where one fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from landscape.loaded import Loaded
from landscape.sharing import Together

SCRIPT = Path(__file__).with_name("shared_draw.py")
#: Products are summed in another order.
EXACT = 1e-12


def run(folder: Path, world: int) -> tuple[list[dict[str, Any]], list[int], str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), str(world)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            cwd=SCRIPT.parents[1],
        )
        for rank in range(world)
    ]
    said = [p.communicate(timeout=300)[1] for p in processes]
    found = [folder / f"rank{r}.json" for r in range(world)]
    assert all(f.exists() for f in found), "\n".join(said)
    return [json.loads(f.read_text()) for f in found], [p.returncode for p in processes], "\n".join(said)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    found, codes, said = run(tmp_path_factory.mktemp("two"), 2)
    assert codes == [0, 9], said  # the second one is killed at the end
    return found


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    found, codes, said = run(tmp_path_factory.mktemp("three"), 3)
    assert codes == [0, 0, 0], said
    return found


def assert_same(found: Any, expected: Any, name: str = "") -> None:
    torch.testing.assert_close(flat(found), flat(expected), rtol=EXACT, atol=EXACT, msg=lambda text: f"{name}: {text}")


def flat(numbers: Any) -> torch.Tensor:
    def walk(x: Any) -> list[float]:
        return [y for part in x for y in walk(part)] if isinstance(x, list) else [x]

    return torch.tensor(walk(numbers), dtype=torch.float64)


class TestTheNumbersAreThoseOfOneProcess:
    @pytest.mark.parametrize("world", ["two", "three"])
    def test_of_every_shared_measurement(self, world: str, request: pytest.FixtureRequest) -> None:
        for seen in request.getfixturevalue(world):
            assert len(seen["same"]) == 19
            for name, (shared, alone) in seen["same"].items():
                assert_same(shared, alone, name)

    @pytest.mark.parametrize("world", ["two", "three"])
    def test_bit_for_bit_where_whole_batches_are_evaluated(self, world: str, request: pytest.FixtureRequest) -> None:
        for seen in request.getfixturevalue(world):
            # Products are made in the way that a trial finds fastest, and agree to rounding.
            for name in ("evaluation", "evaluation of large batches", "line", "one batch that stays whole, evaluated"):
                shared, alone = seen["same"][name]
                assert shared == alone, name
            assert seen["same"]["random numbers"][0][0] == seen["same"]["random numbers"][1][0]

    def test_the_same_in_all_processes(self, three: list[dict[str, Any]]) -> None:
        shared = [{name: pair[0] for name, pair in seen["same"].items()} for seen in three]
        assert shared[0] == shared[1] == shared[2]

    def test_where_one_has_no_memory_for_whole_batches(self, two: list[dict[str, Any]]) -> None:
        for seen in two:
            assert_same(*seen["starved"])


class TestNobodyWaitsForEver:
    @pytest.mark.parametrize(
        ("name", "first", "second"),
        [
            ("other data", "other data or weights in process 1 than in process 0", "in process 0 than in process 1"),
            ("other calls", "process 0 is at a gradient, process 1 at an evaluation", "process 0 at a gradient"),
            ("one call fewer", "process 0 is at an evaluation, process 1 at the end", "process 1 is at the end"),
            ("another vector", "a product is of other numbers in process 1", "a product is of other numbers"),
            ("other weights", "an evaluation is of other numbers in process 1", "an evaluation is of other numbers"),
            ("an error between calls", "process 1 of 2 failed: ZeroDivisionError: division by zero", "division by"),
            ("an error in a call", "process 1 of 2 failed: ZeroDivisionError: division by zero", "division by zero"),
            ("Ctrl-C", "process 1 of 2 failed: KeyboardInterrupt", "KeyboardInterrupt"),
            ("a loss that is not finite", "process 1 of 2 failed: the loss at the checkpoint is nan", "NonFiniteLoss"),
            ("an error behind one that was caught", "process 1 of 2 failed: ZeroDivisionError", "ZeroDivisionError"),
            ("an error in a call behind two that were caught", "process 1 of 2 failed: ZeroDivisionError", "division"),
            ("going on alone", "another process has left this objective", "process 1 is at the end, process 0 at an"),
            ("an error of many characters", "process 1 of 2 failed: ZeroDivisionError: \N{GRINNING FACE}", "Zero"),
            ("an objective left open", "entered later on the same model was still open", "was still open"),
            ("nothing after all that", "nothing", "nothing"),
        ],
    )
    def test_where_they_do_not_do_the_same(self, two: list[dict[str, Any]], name: str, first: str, second: str) -> None:
        assert first in two[0]["refused"][name]
        assert second in two[1]["refused"][name]

    def test_where_one_is_killed(self, two: list[dict[str, Any]]) -> None:
        assert two[0]["dies"].startswith("another process can no longer be reached: ")

    def test_where_torch_distributed_is_not_started(self, two: list[dict[str, Any]]) -> None:
        assert "needs torch.distributed.init_process_group()" in two[0]["alone"]


@pytest.mark.parametrize(
    ("backends", "device", "words", "sums"),
    [
        ("cpu:gloo,cuda:gloo", "cpu", "cpu", "cpu"),
        ("cpu:gloo,cuda:nccl", "cuda:1", "cpu", "cuda:1"),
        ("cpu:gloo", "cuda:1", "cpu", "cpu"),
        ("cuda:nccl", "cuda:1", "cuda:1", "cuda:1"),
        ("cuda:nccl", "cpu", "cuda", "cuda"),
        ("cuda:nccl", None, "cuda", "cuda"),
    ],
)
def test_exchanges_take_place_where_the_backend_can_reach_them(
    monkeypatch: pytest.MonkeyPatch, backends: str, device: str | None, words: str, sums: str
) -> None:
    for name, value in {
        "is_initialized": True,
        "get_rank": 0,
        "get_world_size": 2,
        "get_backend_config": backends,
    }.items():
        monkeypatch.setattr(torch.distributed, name, lambda *_, value=value: value)
    together = Together(True, None if device is None else torch.device(device))
    assert (str(together._bytes_on), str(together._sums_on)) == (words, sums)


class TestShares:
    @pytest.mark.parametrize("of", [1, 2, 3, 4, 7])
    @pytest.mark.parametrize("even", [False, True])
    @pytest.mark.parametrize("cut", [False, True])
    def test_hold_every_sample_once(self, of: int, even: bool, cut: bool) -> None:
        every = Loaded(list(torch.arange(22).split([5, 5, 5, 5, 2])))
        shares = [every.share(place, of, cut=cut, even=even) for place in range(of)]
        parts = sorted((p, b) for s in shares for p, b in zip(s.places, s.batches, strict=True))
        assert torch.cat([b for _, b in parts]).tolist() == list(range(22))
        assert {s.total for s in shares} >= {len(parts)} or cut

    def test_are_even_where_batches_may_be_cut(self) -> None:
        every = Loaded(list(torch.arange(24).split(8)))
        for even, sizes in ((True, [12, 12]), (False, [16, 8])):
            shares = [every.share(place, 2, cut=True, even=even) for place in range(2)]
            assert [sum(len(b) for b in s.batches) for s in shares] == sizes

    def test_keep_their_places_when_halved(self) -> None:
        every = Loaded(list(torch.arange(12).split(4)))
        share = every.share(1, 2, cut=True, even=True)
        assert share.places == [(1,), (2, 1)]
        assert share.halve()
        assert share.places == [(1, 0), (1, 1), (2, 1, 0), (2, 1, 1)]
        assert len({share.number(i) for i in range(4)}) == 4
        assert every.number(2) == 2
