"""The output store: a folder that holds every finished stage once, whole, under its content key.

    stages/<name>/     a finished stage, renamed into place: stage.json, record.jsonl, *.safetensors, grids/<images>.png
    work/<name>/       the same stage while it trains, with its checkpoint
    claims/<name>.lock held (flock) by the process that trains the stage; the kernel frees it when that process dies
    weights/<sha256>.pth weights of the Inception network that scores
    runs/<id>.json    name of the score stage that an MLflow run shows
    sweeps/<key>.json what a sweep or a search consists of
    failures/<name>.json the last error of a trial that could not finish; removed when it does
    ledger/<process>.jsonl what a process did when: begun, resumed, published (`Store.note`)
    drivers/<time>-<key>.log what a command on a cluster has printed (sweeps.detach)

Everything in it is data (JSON, safetensors, PNG); nothing is unpickled. Everything in it says whether it is whole:
JSON and tensors have a SHA-256 inside, a line of a record or the ledger has a CRC, and stage.json has the SHA-256 of
every file of its stage. What is in stages/ is the truth: all else may be deleted, and the same command makes it again,
but for the ledger's and the logs' account of the past. `sgan.bucket` keeps the same in a bucket.
"""

import errno
import fcntl
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgan.files import StoreError, checked_line, inside, read_json, read_lines, read_tensors, sha256, sync, write_json

if TYPE_CHECKING:  # torch takes seconds and half a gigabyte, which the readers of records and facts need not spend
    from torch import Tensor

STAGE_FILE = "stage.json"
LEDGER = "ledger"
GRIDS, FIGURES, MODELS = "grids", "figures", "model"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What a write fails with where the disk is full, a quota is used up, or the disk has become read-only."""
ROOM_WAIT = 3.0
"""Seconds between two looks at a disk that was full."""
PROBE = 2**20
"""Bytes of a write that shows that there is room again."""


class Store:
    """The folder `root`, made if it is not there.

    Raises StoreError where the folder cannot be made or written.

    Attributes:
        address: what names the store on every host.
        poll: seconds between two looks at a stage that another process trains.
    """

    poll = 0.2

    def __init__(self, root: str | Path):
        self.root = Path(root).absolute()
        self.address = str(self.root)
        self.writer = uuid.uuid4().hex[:16]  # names its file of the ledger
        try:
            for name in ("stages", "work", "claims", "failures", "sweeps"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise StoreError(
                f"the output store {self.root} cannot be written ({error.strerror}); "
                "name a writable folder with --store"
            ) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)

    def note(self, event: str, **about: Any) -> None:
        """Add an event to the ledger: a line in the file of this process, which none other writes.

        It says who did what when, for people. Nothing depends on it: where it cannot be written, it is left out.
        """
        path = self._own_ledger()
        who = {"time": time.time(), "host": platform.node(), "process": os.getpid()}
        line = checked_line({**who, "event": event, **about}).encode()
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            with open(path, "ab", buffering=0) as file:
                before = file.tell()
                if file.write(line) < len(line):  # the disk is full: half a line would spoil the next
                    file.truncate(before)

    def _own_ledger(self) -> Path:
        return self.root / LEDGER / f"{self.writer}-{os.getpid()}.jsonl"

    def events(self) -> list[dict[str, Any]]:
        """All events of the ledger, the earliest first; StoreError where a file of it is damaged."""
        self.fetch(self.root / LEDGER)
        found = []
        for path in (self.root / LEDGER).glob("*.jsonl"):
            advice = "delete it: it is an account of the past, and no result depends on it"
            try:
                found += read_lines(path.read_text(), path, advice)
            except (ValueError, OSError) as error:
                if isinstance(error, StoreError):
                    raise
                raise StoreError(f"{path} cannot be read ({error}); {advice}") from error
        return sorted(found, key=lambda event: event["time"])

    def has_room(self) -> bool:
        """Whether the store can be written now."""
        try:
            with tempfile.TemporaryFile(dir=self.root) as file:
                file.write(bytes(PROBE))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            return False
        return True

    def when_there_is_room(self, write: Callable[[], None]) -> None:
        """Write something, again and again while the disk is full or read-only."""
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                with suppress(OSError):  # what is printed may go to that disk too
                    print(f"waiting for room in the store {self.address} ({error.strerror})", flush=True)
            time.sleep(ROOM_WAIT)
            while not self.has_room():
                time.sleep(ROOM_WAIT)

    def stage(self, name: str) -> Path:
        """Folder of a finished stage; it exists only once the stage is whole."""
        return self._folder(name)

    def _folder(self, name: str) -> Path:
        return self._path("stages", name)

    def _path(self, *names: str) -> Path:
        """A path in the store; StoreError where a name leads out of it."""
        return inside(self.root, "/".join(names), self.address)

    def look(self, name: str) -> Path:
        """Folder with the record and the grids of a stage, finished or in progress; absent before it began."""
        return self.stage(name) if self.has(name) else self.work(name)

    def work(self, name: str) -> Path:
        """Folder of a stage in progress."""
        return self._path("work", name)

    def failure(self, name: str) -> Path:
        """File with the last error of the trial whose last stage is `name`."""
        return self._path("failures", f"{name}.json")

    def weights(self, digest: str) -> Path:
        """File of the Inception weights with this SHA-256."""
        return self._path("weights", f"{digest}.pth")

    def keep_weights(self, path: Path, digest: str) -> None:
        """Copy Inception weights into the store, where every node finds them."""
        kept = self.weights(digest)
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file, open(path, "rb") as given:
                shutil.copyfileobj(given, file)
            os.replace(file.name, kept)
            self.save(kept)

    def note_run(self, run: str, name: str) -> None:
        """Remember which score stage an MLflow run shows, so that `python -m sgan.sample RUN` finds it."""
        path = self._run(run)
        if not path.exists():
            write_json(path, {"run": run, "stage": name})
            self.save(path)

    def shown(self, run: str) -> str:
        """Name of the score stage that an MLflow run shows; "" where the store does not know the run."""
        path = self._run(run)
        self.fetch(path)
        return read_json(path, run=run)["stage"] if path.exists() else ""

    def _run(self, run: str) -> Path:
        return self._path("runs", f"{run}.json")

    def sweep(self, key: str) -> Path:
        """File that lists what a sweep consists of: its settings, its trials and their stages."""
        return self._path("sweeps", f"{key}.json")

    def manifest(self, key: str) -> dict[str, Any]:
        """What `sweep` holds."""
        self.fetch(self.sweep(key))
        return read_json(self.sweep(key), key=key)

    def sweeps(self) -> list[str]:
        """Keys of all sweeps in the store, in the order in which they were started."""
        keys = [file.stem for file in (self.root / "sweeps").glob("*.json")]
        return sorted(keys, key=lambda key: read_json(self.sweep(key), key=key)["started"])

    def save(self, path: Path) -> None:
        """Make a file, or all files of a folder, that was written below `root` last as long as the store."""

    def fetch(self, path: Path) -> None:
        """Bring a file below `root` to what the store has under its name, if it has it."""

    def has(self, name: str) -> bool:
        """True once the stage is finished."""
        return (self.stage(name) / STAGE_FILE).exists()

    def renew(self) -> None:
        """Let every answer from now on know what other hosts have finished by now."""

    def finished(self, beginning: str) -> list[str]:
        """Names of the finished stages that begin so."""
        return sorted(path.parent.name for path in (self.root / "stages").glob(f"{beginning}*/{STAGE_FILE}"))

    def facts(self, name: str) -> dict[str, Any]:
        """What stage.json says of a finished stage."""
        return read_json(self.stage(name) / STAGE_FILE, name=name)

    def file(self, name: str, file: str) -> Path:
        """A file of a finished stage, checked against the digest taken when it was published.

        Raises StoreError where the file is missing or its bytes have changed.
        """
        path = self._file(name, file)
        expected = self.facts(name)["files"].get(file)
        if not path.is_file() or expected != sha256(path):
            raise StoreError(f"{path} is missing or damaged; delete {self.stage(name)}, and the stage is trained again")
        return path

    def tensors(self, name: str, file: str) -> "dict[str, Tensor]":
        """Tensors of a finished stage, as `file` finds them."""
        return read_tensors(self.file(name, file))[0]

    def _file(self, name: str, file: str) -> Path:
        return inside(self._folder(name), file, f"stage.json of {name} in {self.address}")

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Try to become the one process that trains stage `name`; yields whether it is ours. Never waits."""
        with self.alone(name) as ours:
            yield ours and not self.has(name)

    @contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        """Try to hold a lock that is no stage's; yields whether it is ours. Never waits."""
        with open(self._path("claims", f"{name}.lock"), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Wait for, and hold, a lock that is no stage's."""
        with open(self._path("claims", f"{name}.lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def begin(self, name: str) -> Path:
        """The work folder of a claimed stage, with what an interrupted run left in it."""
        folder = self.work(name)
        self.note("stage resumed" if folder.exists() else "stage begun", stage=name)
        (folder / GRIDS).mkdir(parents=True, exist_ok=True)
        return folder

    def keep(self, name: str, now: bool = False) -> None:
        """Called while a stage trains, and `now` where it stops: let what is in its work folder outlive this host."""
        if now:
            self.note("stage stopped", stage=name)

    def publish(self, name: str, facts: Mapping[str, Any], drop: tuple[str, ...] = ()) -> None:
        """Turn the work folder into the finished stage in one rename; `drop` names what only the work needed."""
        folder = self.work(name)
        for path in (folder / file for file in drop):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for leftover in folder.rglob(".*"):  # of a write that was killed
            leftover.unlink()
        (folder / STAGE_FILE).unlink(missing_ok=True)
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        digests = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
        write_json(folder / STAGE_FILE, {**facts, "name": name, "files": digests, "finished": time.time()})
        for path in (*files, *(file for file in folder.rglob("*") if file.is_dir()), folder):
            sync(path)  # a power cut leaves the whole stage or none
        if self._folder(name).exists():  # damaged: it has no stage.json, or it would not have been trained again
            shutil.rmtree(self._folder(name))
        os.rename(folder, self._folder(name))
        sync(self.root / "stages")
        self.note("stage published", stage=name, status=facts["status"])
