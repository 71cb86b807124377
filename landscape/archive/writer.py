"""Write an archive: each Result as it is measured, the finished file renamed into place."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import h5py
import numpy as np

from ..counted import counted
from ..errors import ArchiveError
from ..provenance import provenance
from ..results import Result
from .atomic import Partial, reserve
from .groups import Encoded, encode, write_group
from .reader import Archive, Entry, open_archive
from .schema import (
    APPENDED,
    FORMAT,
    FORMAT_VERSION,
    RESULTS,
    RUN,
    STATUSES,
    UNFINISHED,
    Subject,
    dump_json,
    pack,
    unpack,
)
from .seal import check, seal, sealed

#: `<path>.partial` is rewritten as a whole after each result, but never takes more than 1/20 of the time:
#: after a write of 0.1 s, results of the next 2 s wait for the one that follows. Chosen by us.
FLUSH_SHARE = 20.0
#: Longer facts of unfinished rows stay out: HDF5 takes no attribute of 64 KB, and they only explain.
FACTS = 60_000


class ArchiveWriter:
    """A context manager that gathers Results in `<path>.partial` and renames it to `path` at the end.

    `run` are the settings of the run (loss, schedule, optimizer, batch_size, task, ...), `attributes` those of
    the root; what `landscape.provenance.provenance()` gathers is added unless a "run_id" among them says that
    it was. `mode="append"` adds to an archive that exists (and starts one where none does).

    The path is checked here, before anything is measured. After each `add` the partial file is a whole archive
    (status "running"), so that kill -9 at any moment leaves what was measured, and `path` as it was. When the
    block ends, status is "complete"; after an exception "failed", after Ctrl-C or sys.exit "interrupted": the
    archive is finished all the same if there is a result, and nothing is left behind if there is none.
    Cost: each `add` writes all of this run's results again (appending: not the old file's).

    `resume=True` goes on where an earlier run of the same path was interrupted or killed: what it measured is taken
    over, `earlier` lists it, `unfinished` holds the rows of measurements that did not end, and a result may replace the
    partial one that came before. Appending to an archive whose status is not "complete" leaves the status as it is;
    resuming it sets it.

    ArchiveError: the file exists (`force` replaces it, at the end), is in use by another writer, cannot be
    written, is no archive to append to; the disk is full (the results stay in memory, and the end of the block
    tries again); the partial file of a killed run holds results (`force` drops it).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        run: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
        mode: Literal["new", "append"] = "new",
        force: bool = False,
        resume: bool = False,
    ) -> None:
        if mode not in ("new", "append"):
            raise ArchiveError(f'mode is {mode!r}, expected "new" or "append"')
        if resume and force:
            raise ArchiveError("resume goes on with what there is, force replaces it: give one of them")
        self._resume = resume
        mode = "append" if resume else mode
        given = dict(attributes or {})
        self.path = Path(os.path.realpath(path))
        self._mode, self._force = mode, force
        self._run = dict(run or {})
        self._results: list[tuple[str, dict[str, Any], Encoded, int]] = []  # group, attributes, content, rank
        self._in_image = self._on_disk = 0
        self._written_at, self._write_seconds = -float("inf"), 0.0
        self._closed = self._done = self._rows_on_disk = False
        self._check_target()
        self._ids: Counter[str] = Counter()
        self._order = 0
        self._begin: tuple[Counter[str], int] = Counter(), 0
        self._old: tuple[int, int, int] | None = None
        self._old_status = ""
        #: What an earlier run of this path measured, and the rows that its unfinished measurements left.
        self.earlier: tuple[Entry, ...] = ()
        self.unfinished: dict[str, np.ndarray] = {}
        #: The facts that each of those rows depends on; see `landscape.journal`.
        self.known: dict[str, Mapping[str, Any]] = {}
        self._rows: dict[str, list[np.ndarray]] = {}
        self._facts: dict[str, Mapping[str, Any]] = {}
        self._fresh = False
        self._replaced: list[str] = []
        try:
            self._partial = Partial(self.path)
        except OSError as error:
            raise ArchiveError(f"{self.path} cannot be written: {error.strerror or error}") from error
        # From here on we are the only writer, so that the old file is read as it will be at the end.
        self._appending = mode == "append" and self.path.exists()
        try:
            left = self._leftover()
            if self._appending:
                self._read_old()
        except ArchiveError:
            if self._partial.path.stat().st_size:
                self._partial.release()
            else:
                self._partial.discard()
            raise
        self._attributes = given if "run_id" in given else {**provenance(), **given}
        if resume:
            self._take_over(left)
        self._image = self._new_image("running")

    @property
    def results(self) -> int:
        """Number of results added so far."""
        return len(self._results)

    def add(
        self,
        result: Result,
        *,
        subject: Subject | None = None,
        asked: str = "",
        replaces: Entry | None = None,
        rank: int = 0,
    ) -> str:
        """Store one Result and return its id: it lies at /results/<kind>/<id>; as `add_all` for one."""
        return self.add_all([result], subject=subject, asked=asked, replaces=[replaces], rank=rank)[0]

    def add_all(
        self,
        results: Sequence[Result],
        *,
        subject: Subject | None = None,
        asked: str = "",
        replaces: Sequence[Entry | None] = (),
        rank: int = 0,
    ) -> list[str]:
        """Store what one measurement gave, all of it or, where it is interrupted, nothing; return the ids.

        `asked` is kept beside them, for whoever resumes; `replaces` names results of `earlier` that go. The finished
        archive is in the order of `rank`, ids too, and of one rank as they came: for results of several at a time.
        TypeError for anything else; ArchiveError where a variable cannot be stored, or the disk is full.
        """
        if self._closed:
            raise ArchiveError(f"{self.path} is finished; append to it with mode='append'")
        for result in results:
            if not isinstance(result, Result):
                raise TypeError(f"expected a Result, got {type(result).__name__}")
        if subject is not None and not isinstance(subject, Subject):
            raise TypeError(f"expected a Subject, got {type(subject).__name__}")
        encoded = [encode(result, subject or Subject()) for result in results]
        for old in replaces:
            if old is not None:
                self._drop(old.group)
        names = self._append(encoded, asked, rank)
        self._fill_image()
        self._flush_in_turn()
        return names

    def keep(self, key: str, rows: np.ndarray, facts: Mapping[str, Any] | None = None) -> None:
        """Keep rows of a measurement that is under way; they go when the archive is complete.

        `key` is a plain name, `rows` (n, columns) with the same columns each time, `facts` the plain data on which the
        rows depend. ArchiveError where the disk is full.
        """
        self._facts.setdefault(key, facts or {})
        self._rows.setdefault(key, []).append(np.asarray(rows, dtype=np.float64))
        self._fresh = True
        self._flush_in_turn()

    def close(self, status: str = "complete") -> None:
        """Finish the archive with this status and rename it into place; a second call does nothing.

        Without a result, any status but "complete" leaves nothing behind. ArchiveError where it cannot be
        written: it names the partial file that holds the results.
        """
        if status not in STATUSES:
            raise ArchiveError(f"status is {status!r}, expected one of {', '.join(STATUSES)}")
        if self._closed:
            return
        try:
            if self._results or self._changes(status):
                self._finish(status)
            elif self._rows and not self._appending and status != "complete":
                # Points of a first result: no archive yet, but a partial file that a resumed run goes on from.
                self._flush()
                self._partial.release()
            elif status != "complete" or self._appending:
                self._partial.discard()
            else:
                self._finish(status)
        except OSError as error:
            self._closed = True
            self._partial.release()
            raise self._unwritten(error) from error
        except KeyboardInterrupt:
            raise  # not closed: `__exit__` tries once more
        except BaseException:
            self._closed = True
            self._partial.release()
            raise
        self._closed = True
        self._image.close()

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave(kind)
        except KeyboardInterrupt:
            self._leave(kind or KeyboardInterrupt)
            raise

    def _leave(self, kind: type[BaseException] | None) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
        try:
            self.close("interrupted" if stopped else "failed" if kind is not None else "complete")
        except ArchiveError as unwritten:
            if not stopped:
                raise
            # Ctrl-C stays Ctrl-C (exit status 130); what could not be written is said beside it.
            warnings.warn(str(unwritten), RuntimeWarning, stacklevel=3)

    # ------------------------------------------------------------------------------------------ checks

    def _check_target(self) -> None:
        folder, path = self.path.parent, self.path
        if not folder.is_dir():
            raise ArchiveError(f"the folder {folder} does not exist; create it, or write somewhere else")
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise ArchiveError(f"{path} cannot be written: {error.strerror}") from error
        if stat.S_ISDIR(mode):
            raise ArchiveError(f"{path} is a folder; name a file in it, such as {path / 'run.h5'}")
        if not stat.S_ISREG(mode):
            raise ArchiveError(f"{path} is no ordinary file; name another one")
        if self._mode == "new" and not self._force:
            raise ArchiveError(f"{path} exists; pass --append to add to it, --force to replace it")
        if not os.access(path, os.W_OK):
            raise ArchiveError(f"{path} is read-only; write to another file, or change its permissions")

    def _leftover(self) -> Archive | None:
        """Return what a killed run left in the partial file, None if nothing; refuse it unless told what to do."""
        left = self._partial.path
        found = None
        if left.stat().st_size and not self._force:
            # A partial file that does not open holds nothing that anybody could read: it is overwritten.
            with contextlib.suppress(ArchiveError):
                found = open_archive(left)
        if found is None or self._resume:
            return found
        held, rows = len(found.entries), sum(len(r) for r in found.unfinished.values())
        if held or rows:
            said = [counted(held, "result")] * bool(held) + [counted(rows, "point")] * bool(rows)
            raise ArchiveError(
                f"{left} holds {' and '.join(said)} of a run that was killed; pass --resume to go on from there, "
                f"rename it to keep it (landscape show reads it), or pass --force to drop it"
            )
        return None

    def _take_over(self, left: Archive | None) -> None:
        """Make what a killed run left part of this one, before anything overwrites its file."""
        old = open_archive(self.path) if self._appending else None
        self.earlier = old.entries if old is not None else ()
        for source in (old, left):
            for key, rows in (source.unfinished if source is not None else {}).items():
                before = self.unfinished.get(key, rows[:0])
                # A killed appending went on from the rows of the old archive: it holds those, and more.
                self.unfinished[key] = rows if len(rows) >= len(before) else before
            self.known |= source.known if source is not None else {}
        self._facts = dict(self.known)
        self._rows = {key: [rows] for key, rows in self.unfinished.items()}
        self._fresh = bool(left is not None and left.unfinished)
        if left is not None:
            # Under the ids that they had: a killed appending counted on from the old archive, as this one does.
            for entry in left.entries:
                self._append([encode(entry.result, entry.subject)], entry.asked)
            self.earlier = (*self.earlier, *left.entries)
            about = ("created", "run_id", "command_line", "source_revision", "versions")
            self._attributes["resumed"] = {k: left.attributes[k] for k in about if k in left.attributes}

    def _changes(self, status: str) -> bool:
        """Whether an old archive needs a new writing although there is no new result: its end, or further points."""
        if not self._appending:
            return False
        ended = self._resume and status == "complete" and (self._old_status != "complete" or bool(self.unfinished))
        return ended or (self._fresh and status != "complete")

    def _drop(self, group: str) -> None:
        """Leave out a result that another replaces: of the old archive, or of what a killed run left."""
        kept = [r for r in self._results if r[0] != group]
        if len(kept) == len(self._results):
            self._replaced.append(group)
            return
        self._results, self._in_image = kept, 0
        self._image = self._new_image("running")

    def _append(self, encoded: Sequence[Encoded], asked: str, rank: int = 0) -> list[str]:
        new, names = [], []
        for one in encoded:
            self._ids[one.kind] += 1
            self._order += 1
            names.append(f"{self._ids[one.kind]:04d}")
            about = {"order": self._order, **({"asked": asked} if asked else {})}
            new.append((f"{RESULTS}/{one.kind}/{names[-1]}", about, one, rank))
        self._results += new  # one step, so that Ctrl-C finds them either here, whole, or nowhere
        return names

    def _arrange(self) -> None:
        """Number the results by their ranks."""
        if all(a[3] <= b[3] for a, b in pairwise(self._results)):
            return
        ids, order = Counter(self._begin[0]), self._begin[1]
        arranged = []
        for _, about, encoded, rank in sorted(self._results, key=lambda r: r[3]):
            ids[encoded.kind] += 1
            order += 1
            group = f"{RESULTS}/{encoded.kind}/{ids[encoded.kind]:04d}"
            arranged.append((group, {**about, "order": order}, encoded, rank))
        self._results = arranged  # one step, as above

    def _read_old(self) -> None:
        old = open_archive(self.path)
        self._old_status = old.status
        for entry in old.entries:
            number = int(entry.id) if entry.id.isdigit() else 0
            self._ids[entry.kind] = max(self._ids[entry.kind], number)
        self._order = old.last_order
        self._begin = Counter(self._ids), self._order
        self._old = _identity(self.path)

    # ----------------------------------------------------------------------------------------- writing

    def _new_image(self, status: str) -> h5py.File:
        """Return an archive without results, in memory."""
        # HDF5 tells files in memory apart by their names; this one is stored nowhere.
        name = f"{self.path}.{uuid.uuid4().hex}"
        image = h5py.File(name, "w", driver="core", backing_store=False, track_order=True, locking=False)
        described = {"model_fingerprint": self._fingerprints(), **self._attributes}
        root = {"format": FORMAT, "format_version": FORMAT_VERSION, **described, "status": status}
        image.attrs.update(pack(root))
        image.create_group(RUN, track_order=True).attrs.update(pack(self._run))
        if status != "complete":
            self._write_rows(image)
        return image

    def _write_rows(self, file: h5py.File) -> None:
        """Write the rows of unfinished measurements that are not in this file yet."""
        for key, parts in self._rows.items():
            rows = np.vstack(parts)
            self._rows[key] = [rows]
            found: Any = file.get(f"{UNFINISHED}/{key}")
            if found is None:
                shape = (None, rows.shape[1])
                made = file.create_dataset(
                    f"{UNFINISHED}/{key}", data=rows, maxshape=shape, chunks=(256, rows.shape[1])
                )
                text = dump_json(self._facts.get(key, {}))
                if len(text) < FACTS:
                    made.attrs["facts"] = text
            elif len(found) < len(rows):
                have = len(found)
                found.resize(len(rows), axis=0)
                found[have:] = rows[have:]

    def _fingerprints(self, before: str = "") -> str:
        found = (str(e.attributes.get("checkpoint_fingerprint", "")) for _, _, e, _ in self._results)
        return " ".join(dict.fromkeys([*before.split(), *(f for f in found if f)]))

    def _fill_image(self) -> None:
        # The counter moves after the group is whole, so that a group cut by Ctrl-C is written again.
        while self._in_image < len(self._results):
            group, about, encoded, _ = self._results[self._in_image]
            write_group(self._image, group, encoded, about)
            self._in_image += 1

    def _flush_in_turn(self) -> None:
        if time.monotonic() - self._written_at >= FLUSH_SHARE * self._write_seconds:
            try:
                self._flush()
            except OSError as error:
                raise self._unwritten(error) from error

    def _flush(self) -> None:
        self._fill_image()
        if not self._done:
            self._write_rows(self._image)
        self._image.flush()
        started = time.monotonic()
        self._partial.write(sealed(self._image.id.get_file_image()))
        self._on_disk = self._in_image
        self._rows_on_disk = bool(self._rows) and not self._done
        self._written_at = time.monotonic()
        self._write_seconds = self._written_at - started

    def _finish(self, status: str) -> None:
        if not self._partial.published:  # it is, when Ctrl-C came between the renaming and here
            self._publish(status)
        if self._appending:
            self._partial.discard()
        else:
            self._partial.release()  # its file is the archive now

    def _publish(self, status: str) -> None:
        # Made anew: the bytes then depend on what was measured, not on when it happened to be flushed.
        self._done = status == "complete"
        self._arrange()
        self._image, self._in_image = self._new_image(status), 0
        self._flush()
        if not self._appending:
            if self._mode == "new" and not self._force and self.path.exists():
                raise ArchiveError(
                    f"{self.path} was made by another program meanwhile; it is left as it is, and the results "
                    f"are in {self._partial.path}: rename that"
                )
            self._partial.publish(self._partial.path)
            return
        if not self.path.exists() or _identity(self.path) != self._old:
            raise ArchiveError(
                f"{self.path} was changed by another program meanwhile; it is left as it is, and the new "
                f"results are in {self._partial.path}"
            )
        merged = self._partial.aside
        try:
            self._merge(merged, status)
            self._partial.publish(merged)
        except RuntimeError as error:  # h5py's, where the HDF5 library has no errno to give
            raise OSError(str(error)) from error
        finally:
            merged.unlink(missing_ok=True)

    def _merge(self, merged: Path, status: str) -> None:
        """Copy the old archive aside and add this run's results to the copy."""
        check(self.path, everything=True)  # the copy gets a seal of its own
        shutil.copyfile(self.path, merged)
        # What the image takes, twice, and a block for HDF5's own bookkeeping: then nothing can fail inside it.
        reserve(merged, 2 * self._partial.path.stat().st_size + (1 << 20))
        with h5py.File(merged, "r+", locking=False) as file:
            root = unpack(file.attrs)
            later = file.require_group(APPENDED)
            number = f"{len(later) + 1:04d}"
            described = {**self._attributes, "run": self._run, "status": status, "found": root.get("status")}
            later.create_group(number, track_order=True).attrs.update(pack(described))
            for group in self._replaced:
                if group in file:
                    del file[group]
            for group, about, encoded, _ in self._results:
                write_group(file, group, encoded, {**about, "appended": number})
            if self._resume and UNFINISHED in file:
                del file[UNFINISHED]  # a resumed run took those rows over
            if status != "complete":
                self._write_rows(file)
            root["model_fingerprint"] = self._fingerprints(str(root.get("model_fingerprint", "")))
            root["modified"] = self._attributes.get("created") or datetime.now(UTC).isoformat(timespec="seconds")
            # What an earlier run did not finish is not finished by adding something else.
            ended = self._resume or root.get("status") == "complete"
            root["status"] = status if ended or status != "complete" else root.get("status")
            file.attrs.update(pack(root))
        seal(merged)

    def _unwritten(self, error: OSError) -> ArchiveError:
        """Return the error that says why, and where the results are."""
        reason = error.strerror or str(error)
        if not self._on_disk and not self._rows_on_disk:
            with contextlib.suppress(OSError):
                self._partial.path.unlink(missing_ok=True)
            kept = f"none of the {self.results} results measured is on disk"
        elif self._on_disk == self.results:
            kept = f"all {self.results} results measured are in {self._partial.path}: rename it to keep them"
        else:
            kept = f"{self._on_disk} of the {self.results} results measured are in {self._partial.path}"
        return ArchiveError(f"{self.path} could not be written: {reason}; {kept}")


def _identity(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size
