"""A draw shared out between processes: each passes over its part, and what they found is brought together in all.

Every process does the same at the same time, as torchrun starts them. What else would hang, or add up different things,
is refused in all of them: each exchange says first what it is for, of which numbers, and whether a process failed.
"""

from __future__ import annotations

import contextlib
import json
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, TypeVar

import torch

from . import errors
from .batch import map_tensors
from .data import first_line
from .errors import LandscapeError, ObjectiveError, ProcessError
from .loaded import Loaded
from .memory import ran_out

_T = TypeVar("_T")
Group = Any  # torch.distributed.ProcessGroup, which a build of torch without it lacks

#: Bytes of what a process says before an exchange, and characters of an error in it, each of up to 6 bytes there
#: (chosen by us).
_WORDS, _MOST = 4096, 600
#: What the first exchange is for, and the last one.
BEGINNING, END = "the beginning", "the end"
#: Relative difference of sums over the same numbers, between processes whose devices round otherwise (chosen by us:
#: other random vectors of 1e10 entries differ by ten times as much).
_ALIKE = 1e-6


def rank() -> tuple[int, int]:
    """Return (rank, processes) of a distributed training, (0, 1) elsewhere."""
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if _started() else (0, 1)


def _started() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class Together:
    """The exchanges of one process with the others of its group.

    Args:
        group: a torch.distributed process group; True is the default one.
        device: where the tensors to be added lie; None where that isn't known yet, for words alone.

    Raises ObjectiveError where torch.distributed isn't started.
    """

    def __init__(self, group: Group | Literal[True], device: torch.device | None = None) -> None:
        distributed = torch.distributed
        if not _started():
            raise ObjectiveError(
                "process_group= needs torch.distributed.init_process_group() before it, in each process: start them "
                "with torchrun --nproc-per-node"
            )
        self._group = None if group is True else group
        self.place, self.of = distributed.get_rank(self._group), distributed.get_world_size(self._group)
        if self.place < 0:
            raise ObjectiveError("this process is not in the process_group that was given")
        backends = distributed.get_backend_config(self._group)
        kinds = [part.partition(":")[0] for part in backends.split(",")]
        own = [device] if device is not None and device.type in kinds else []
        #: Where bytes are exchanged, and where tensors are added: some backends know only a GPU, others only the host.
        self._bytes_on = torch.device("cpu") if "cpu" in kinds else [*own, torch.device(kinds[0])][0]
        self._sums_on = [*own, self._bytes_on][0]
        #: Whether an exchange was left halfway, or another process has left for good: nobody is there to be told.
        self._lost = self._left = False

    def agree(self, what: str, of: Sequence[Any] = (), sums: Sequence[float] = (), **more: Any) -> list[dict[str, Any]]:
        """Wait for all processes, and return what each says: that it does the same (`what`), of the same numbers.

        `of` has to be equal in all, `sums` (see `digest`) to rounding; `more` is told.
        Raises in all of them where one failed (an error of that kind), where they don't do the same, and where one can
        no longer be reached (ProcessError).
        """
        with self._whole():
            return self._agree(what, of, sums, **more)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Hold this process for out of step unless all inside is done: also a Ctrl-C between two exchanges."""
        if self._lost or self._left:
            raise ProcessError("another process has left this objective, or can no longer be reached: enter it anew")
        self._lost = True
        yield
        self._lost = False

    def _agree(self, what: str, of: Sequence[Any], sums: Sequence[float], **more: Any) -> list[dict[str, Any]]:
        found = self._say({"what": what, "of": [*of], "sums": [*sums], **more})
        failed = [i for i, f in enumerate(found) if "error" in f]
        others = [i for i, f in enumerate(found) if f["what"] != what]
        apart = [i for i, f in enumerate(found) if f["of"] != [*of] or not _alike(f["sums"], sums)]
        if not (failed or others or apart):
            return found
        self._lost = False  # all know that it failed, and are in step
        if failed:
            kind, text = found[failed[0]]["error"]
            # Of the same kind: what one process leaves out and goes on from, the others do, too.
            raise getattr(errors, kind, ProcessError)(f"process {failed[0]} of {self.of} failed: {text}")
        if others:
            raise ProcessError(
                f"the processes don't do the same: process {self.place} is at {what}, process {others[0]} at "
                f"{found[others[0]]['what']}; each must make the same calls with the same arguments and seeds"
            )
        kind = "data or weights" if what == BEGINNING else "numbers"
        raise ProcessError(
            f"the processes don't do the same: {what} is of other {kind} in process {apart[0]} than in process "
            f"{self.place}; each must have the same data, weights, arguments and seeds"
        )

    def tell(self, what: str, error: BaseException) -> None:
        """Tell the others that this process fails at something, so that they fail, too, rather than wait for it."""
        if self._lost or self._left:
            return
        self._lost = True
        with contextlib.suppress(ProcessError):  # nobody is left to be told
            # What is no Exception ends this process: it may no longer come to the end.
            last = what == END or not isinstance(error, Exception)
            self._say({"what": what, "of": [], "sums": [], "error": _said(error), "last": last})
            self._lost, self._left = False, self._left or last

    def leave(self, error: BaseException | None) -> None:
        """Tell the others that this process leaves, with its error if there is one.

        Every process that began does so once, unless it knows that another one has left: so none waits for one that is
        gone, whatever failed before, and was perhaps caught.
        """
        if error is not None:
            self.tell(END, error)
        elif not (self._lost or self._left):
            self.agree(END, last=True)

    def agreed(self, decision: bool) -> bool:
        """Return what the first process decided, such as by its clock."""
        return self.agree("a decision", decision=decision)[0]["decision"]

    @contextlib.contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Tell the others what is raised inside."""
        try:
            yield
        except BaseException as error:
            self.tell(what, error)
            raise

    def add(
        self,
        what: str,
        call: Callable[[], tuple[list[torch.Tensor], float]],
        of: Sequence[Any],
        sums: Sequence[float],
    ) -> tuple[list[torch.Tensor], float]:
        """Return the sums over all processes of what the call gives: tensors, and a number with them."""
        with self.telling(what):
            tensors, number = call()
            total = torch.cat([t.detach().reshape(-1) for t in tensors]).to(self._sums_on)
            with_it = torch.tensor([number], dtype=torch.float64, device=self._sums_on)
        with self._whole():
            self._agree(what, of, sums)
            for part in (total, with_it):
                self._reach(partial(torch.distributed.all_reduce, part, group=self._group))
        parts = total.split([t.numel() for t in tensors])
        return [part.to(t.device).view_as(t) for part, t in zip(parts, tensors, strict=True)], float(with_it)

    def gather(self, what: str, call: Callable[[], list[_T]], sums: Sequence[float]) -> list[_T]:
        """Return the lists that the call gives in all processes, one behind the other, their tensors on the CPU."""
        with self.telling(what):
            own = pickle.dumps(map_tensors(call(), lambda t: t.detach().cpu()))
        with self._whole():
            lengths = [told["length"] for told in self._agree(what, (), sums, length=len(own))]
            parts = self._exchange(own, max(lengths))
        return [r for part, length in zip(parts, lengths, strict=True) for r in pickle.loads(part[:length])]

    def _say(self, told: dict[str, Any]) -> list[dict[str, Any]]:
        # By itself a character beyond the first 65536 would be escaped by two of 6 bytes each.
        words = json.dumps(told, ensure_ascii=False).encode(errors="backslashreplace")
        found = [json.loads(words.rstrip(b"\0")) for words in self._exchange(words, _WORDS)]
        self._left = self._left or any(f.get("last") for f in found)
        return found

    def _exchange(self, own: bytes, length: int) -> list[bytes]:
        """Return the bytes of all processes, each filled up to this length."""
        mine = torch.frombuffer(bytearray(own.ljust(length, b"\0")), dtype=torch.uint8).to(self._bytes_on)
        every = [torch.empty_like(mine) for _ in range(self.of)]
        self._reach(partial(torch.distributed.all_gather, every, mine, group=self._group))
        return [t.cpu().numpy().tobytes() for t in every]

    def _reach(self, exchange: Callable[[], Any]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise ProcessError(f"another process can no longer be reached: {first_line(error)}") from error


class Share:
    """What falls to this process of an objective's batches, for its passes and for products.

    Single passes take whole batches as long as there are enough, so that all processes together find what one alone
    would, bit for bit; products cut what is left over, so that none waits for the other, but none of operators that
    draw labels for each batch, whose parts would be given others.
    """

    def __init__(self, together: Together, every: Loaded, cut: bool) -> None:
        self.together = together
        self.every = every
        self.whole = every.share(together.place, together.of, cut=cut, even=False)
        self.even = every.share(together.place, together.of, cut=cut, even=True)
        self.uncut = every.share(together.place, together.of, cut=False, even=True) if cut else self.even


_GROUP: ContextVar[Group | Literal[True] | None] = ContextVar("landscape_process_group", default=None)


@contextlib.contextmanager
def everything_shared(group: Group | Literal[True] | None) -> Iterator[None]:
    """Have every objective that is made inside share its draw with this group, as if it were given each."""
    token = _GROUP.set(group)
    try:
        yield
    finally:
        _GROUP.reset(token)


def group_here() -> Group | Literal[True] | None:
    """Return the group that `everything_shared` gave, None where it gave none."""
    return _GROUP.get()


def agreed_here(decision: bool) -> bool:
    """Return a decision that doesn't follow from the numbers alike in all processes of `everything_shared`."""
    group = group_here()
    return decision if group is None else Together(group).agreed(decision)


def digest(tensors: Sequence[torch.Tensor]) -> list[float]:
    """Return the sum of these tensors' entries and that of their sizes, by which processes compare them."""
    flat, exact = [t.detach() for t in tensors], torch.float64  # added up in it: a copy in it may not fit beside them
    sums = torch.stack([t.sum(dtype=exact) for t in flat]).sum()
    sizes = torch.stack([torch.linalg.vector_norm(t, 1, dtype=exact) for t in flat]).sum()
    return torch.stack([sums, sizes]).tolist()


def _alike(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two digests are of the same tensors."""
    scale = max((abs(x) for x in (*a, *b) if math.isfinite(x)), default=0.0)
    return len(a) == len(b) and all(
        abs(x - y) <= _ALIKE * scale if math.isfinite(x) and math.isfinite(y) else repr(x) == repr(y)
        for x, y in zip(a, b, strict=True)
    )


def _said(error: BaseException) -> tuple[str, str]:
    """Return the kind of error to be raised in the other processes, and its words."""
    if isinstance(error, LandscapeError):
        return type(error).__name__, first_line(error)[:_MOST]
    kind = "OutOfMemory" if ran_out(error) else ""
    name = type(error).__name__
    return kind, f"{name}: {first_line(error)}"[:_MOST] if str(error) else name
