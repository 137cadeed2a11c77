"""The output store: a folder that holds every finished stage once, whole, under its content key.

docs/store.md lists its files. Everything in it is data (JSON, safetensors, PNG); nothing is unpickled. JSON holds a
SHA-256 of itself, and stage.json that of every other file of its stage. Results are in stages/. If anything else is
deleted, the same command makes it again, except votes and past events in the ledger. Claims are locks (flock) in
claims/, which the kernel frees when a process dies. `sgan.store.s3` keeps the same in a bucket.
"""

import errno
import fcntl
import json
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Required, TextIO

from pydantic import AfterValidator, with_config
from typing_extensions import TypedDict

from sgan.checks import OPEN
from sgan.store import files
from sgan.store.files import StoreError, inside, read_json, remove, sealed, sync, write_json

STAGE_FILE = "stage.json"
LEDGER = "ledger"
GRIDS, FIGURES, MODELS, CHECKPOINTS = "grids", "figures", "model", "checkpoints"
FOLDERS = ("stages", "work", "claims", "failures", "sweeps", LEDGER)  # Folders to which any process may write
LOCK_WAIT = 0.2  # Seconds between two attempts to take a lock that another process holds


@with_config(OPEN)
class Event(TypedDict):
    """An event of the ledger, the store's log, at a time in unix seconds; each kind of event adds its own entries."""

    time: float
    host: str
    process: int
    event: str


@with_config(OPEN)
class Facts(TypedDict, total=False):
    """The content of stage.json; each kind of stage adds its own entries. `files`: path in the stage's folder ->
    SHA-256. `images`, `seconds`: of training or of scoring. `finished`: time in unix seconds."""

    name: Required[str]
    status: Required[str]
    files: Required[dict[Annotated[str, AfterValidator(lambda name: inside(Path("its folder"), name) and name)], str]]
    finished: Required[float]
    kind: str
    reason: str | None
    images: int
    seconds: float
    commit: str
    machine: str
    torch: str
    scores: dict[str, float | None]
    fingerprint: dict[str, dict[str, Any]]
    discriminator_steps: int
    generator_steps: int
    generator_images: int
    flops: float


class LostClaim(StoreError):
    """The claim of a stage in progress was deleted, so that another process may have begun the stage, too."""


class Store:
    """The store in the folder `root`, made if it does not exist; StoreError where it cannot be made or written.

    Args:
        there: the store exists and is opened to read: opening it writes nothing.
    Attributes:
        address: the store's name on every host.
        expiry: seconds after which the claim of a host that died is free."""

    advice = "name a writable folder with --store"
    expiry = 0.0

    def __init__(self, root: str | Path, there: bool = False):
        self.root = Path(root).absolute()
        self.address = str(self.root)
        self.locks: dict[str, TextIO] = {}  # name of each lock that is held -> its file
        self.writer = uuid.uuid4().hex[:16]  # part of the name of its file in the ledger
        try:
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            for folder in () if there else (self.root, *(self.root / name for name in FOLDERS)):
                files.make_folder(folder)
                with tempfile.TemporaryFile(dir=folder):
                    pass
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"the output store {self.root} cannot be written ({reason}); {self.advice}") from error

    def note(self, event: str, **about: Any) -> Path:
        """Append an event to this process's file in the ledger; a disk error is ignored. Returns the file."""
        origin = {"time": time.time(), "host": platform.node(), "process": os.getpid()}
        line = json.dumps(sealed({**origin, "event": event, **about}))
        path = self.root / LEDGER / f"{self.writer}-{os.getpid()}.jsonl"
        with suppress(OSError):
            files.make_folder(path.parent)
            with open(path, "ab", buffering=0) as file:
                files.share(path)
                file.write(f"\n{line}".encode())  # the newline first ends a partial line that a full disk left
        return path

    def events(self) -> list[dict[str, Any]]:
        """All events of the ledger, the earliest first, without damaged lines."""
        self.fetch(self.root / LEDGER)
        events = [event for path in (self.root / LEDGER).glob("*.jsonl") for event in files.whole_lines(path, Event)]
        return sorted(events, key=lambda event: event["time"])

    def stage(self, name: str) -> Path:
        """Folder of a finished stage; it exists only once the stage is whole."""
        return inside(self.root / "stages", name)

    def look(self, name: str) -> Path:
        """Folder with the record and the grids of a stage, finished or in progress; absent before it began."""
        return self.stage(name) if self.has(name) else self.work(name)

    def work(self, name: str) -> Path:
        """Folder of a stage in progress."""
        return inside(self.root / "work", name)

    def checkpoint(self, name: str) -> str:
        """Name of the newest checkpoint of a stage in progress; "" if it has none."""
        return max((path.name for path in (self.work(name) / CHECKPOINTS).glob("[0-9]*")), default="")

    def failure(self, name: str) -> Path:
        """File with the last error of the trial whose last stage is `name`."""
        return inside(self.root / "failures", f"{name}.json")

    def _here(self, folder: str, name: str) -> Path:
        """Return the path of a file that never changes, after `fetch` if it is missing on this host."""
        path = inside(self.root / folder, name)
        if not path.exists():
            self.fetch(path)
        return path

    def weights(self, digest: str) -> Path:
        """File of a given judge's weights with this SHA-256."""
        return self._here("weights", f"{digest}.pth")

    def keep_weights(self, path: Path, digest: str) -> None:
        """Copy a given judge's weights into the store, where every node finds them."""
        kept = self.weights(digest)
        if self.lacks(kept):
            with files.atomic_write(kept) as temporary:
                shutil.copyfile(path, temporary)
            self.save(kept)

    def note_run(self, run: str, name: str) -> None:
        """Remember the score stage that an MLflow run shows, for `python -m sgan.sample RUN`."""
        path = self._here("runs", f"{run}.json")
        if self.lacks(path):
            write_json(path, {"run": run, "stage": name})
            self.save(path)

    def shown(self, run: str) -> str:
        """Name of the score stage that an MLflow run shows; "" where the store does not know the run."""
        path = self._here("runs", f"{run}.json")
        return read_json(path, run=run).get("stage", "") if path.exists() else ""

    def save(self, path: Path) -> None:
        """Save a file that was written below `root`: a bucket uploads it."""

    def fetch(self, path: Path) -> None:
        """Update a file below `root`, or all files of a folder, from the store, if it has them: a bucket downloads."""

    def renew(self) -> None:
        """Drop cached listings, so that stages that another host has just finished are seen."""
        with suppress(OSError):  # NFS trusts names that it did not find until their folder changes (nfs(5))
            os.utime(self.root / "stages")

    def lacks(self, path: Path) -> bool:
        """Whether the store has no file at this path below `root`, as far as is known."""
        return not path.exists()

    def has(self, name: str) -> bool:
        """True once the stage is finished."""
        return (Store.stage(self, name) / STAGE_FILE).exists()

    def facts(self, name: str) -> dict[str, Any]:
        """The content of a finished stage's stage.json."""
        return read_json(self.stage(name) / STAGE_FILE, Facts, name=name)

    def file(self, name: str, file: str) -> Path:
        """A file of a finished stage; StoreError where it is missing, behind a link, or has another digest."""
        folder, expected = Store.stage(self, name), self.facts(name)["files"].get(file)
        path, remedy = inside(folder, file), f"delete {folder}, and the stage is trained again"
        try:
            if expected and files.is_plain(folder, file) and files.sha256(path) == expected:
                return path
        except OSError as error:
            raise files.unreadable(path, error, remedy) from error
        linked = path.exists() and not files.is_plain(folder, file)
        raise StoreError(f"{path} {'lies behind a symbolic link' if linked else 'is missing or damaged'}; {remedy}")

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Try to become the one process that trains a stage; yields whether that worked. Never waits."""
        with self.alone(name) as ours:
            if ours:
                self.renew()
            yield ours and not self.has(name)

    def held(self, name: str) -> bool:
        """Whether a process holds the claim now. Never waits, but a process that claims it at this moment may fail."""
        try:
            with suppress(FileNotFoundError), open(self._lock_file(name)) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    @contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        """Try to hold the lock of this name; yields whether this process holds it. Never waits."""
        path = self._lock_file(name)
        files.make_folder(path.parent)
        with open(path, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            with suppress(OSError):  # it is another user's, or was deleted a moment ago
                files.share(path)
            self.locks[name] = file
            try:
                yield True
            finally:
                del self.locks[name]

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Wait for the lock of this name, and hold it."""
        while True:
            with self.alone(name) as ours:
                if ours:
                    yield
                    return
            time.sleep(LOCK_WAIT)

    def _lock_file(self, name: str) -> Path:
        return inside(self.root / "claims", f"{name}.lock")

    def _require_claim(self, name: str) -> None:
        """Raise LostClaim where the file of a claim that is held was deleted: another process may hold the name now."""
        file, path = self.locks.get(name), self._lock_file(name)
        if file and not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
            raise LostClaim(f"{path}, the stage's claim, was deleted; the stage goes on from its checkpoint")

    def begin(self, name: str) -> Path:
        """The work folder of a claimed stage, with the files that an interrupted run left in it."""
        folder = self.work(name)
        _remove_foreign(folder)
        self.note("stage resumed" if folder.exists() else "stage begun", stage=name)
        files.make_folder(folder / GRIDS)
        return folder

    def keep(self, name: str, now: bool = False) -> None:
        """Save the work folder of a stage beyond this host: called while it trains, and with `now` when it stops.
        LostClaim where its claim was deleted."""
        self._require_claim(name)
        if now:
            self.note("stage stopped", stage=name)

    def publish(self, name: str, facts: Mapping[str, Any]) -> None:
        """Turn the work folder into the finished stage by one rename; a stage that is done drops its checkpoints.
        LostClaim where its claim was deleted, since another process may write there."""
        self._require_claim(name)
        folder, finished = self.work(name), Store.stage(self, name)
        _remove_foreign(folder)
        remove(folder / STAGE_FILE)
        done = facts["status"] == "done"
        paths = [path for path in sorted(folder.rglob("*")) if not (done and path.is_relative_to(folder / CHECKPOINTS))]
        digests = {path.relative_to(folder).as_posix(): files.sha256(path) for path in paths if path.is_file()}
        write_json(folder / STAGE_FILE, {**facts, "name": name, "files": digests, "finished": time.time()})
        for path in paths:
            sync(path)  # a power cut leaves the whole stage or none
        sync(folder)
        files.make_folder(finished.parent)
        remove(finished)  # damaged: it has no stage.json, or it would not have been trained again
        os.rename(folder, finished)
        sync(finished.parent)
        if done:  # last: whatever fails before this goes on from them
            with suppress(OSError):  # the stage is published; what is left only takes room
                remove(finished / CHECKPOINTS)
        self.note("stage published", stage=name, status=facts["status"])


def grid_file(folder: Path, images: int) -> Path:
    """Path of the grid drawn after `images` images were seen, in a stage's folder."""
    return folder / GRIDS / f"{images:09d}.png"


def _remove_foreign(folder: Path) -> None:
    """Remove the temporary files of writes that were killed, and symbolic links, which no stage makes: they could lead
    to any file of this machine."""
    for path in [folder] if folder.is_symlink() else list(folder.rglob("*")):
        if path.is_symlink() or path.name.startswith("."):
            remove(path)
