"""Files of a store: JSON that holds a SHA-256 of itself, and JSON lines (such as a stage's record).

Each is written under another name and renamed: a reader finds all of a file or none of it, but for JSON lines, to which
lines are added. Nothing is unpickled. New files get the umask's permissions and those of the folder around them:
whoever may write to a store may write to all.
"""

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import with_config
from typing_extensions import TypedDict

from sgan.checks import OPEN, WAITED, ConfigError, checked

SEAL = "sha256"
RECORD_FILE = "record.jsonl"
MISSING = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # Numbers of errors of a missing or damaged file


class StoreError(ConfigError):
    """The store cannot be written, or a file in it is damaged; the message names the path and what to do."""


def inside(root: Path, name: object) -> Path:
    """Return the path `root / name`. It may lead through symbolic links; `is_plain` checks that. StoreError where the
    name is not a relative path below `root`."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not isinstance(name, str) or not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise StoreError(f"{name!r} is no name of a file or folder below {root}; use a relative path without '..'")
    return root / name


def is_plain(root: Path, name: str) -> bool:
    """Whether `root / name` is a regular file that is reached from `root` without a symbolic link."""
    path = inside(root, name)
    return path.is_file() and path.resolve() == root.resolve() / name


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lack(error: BaseException) -> OSError | None:
    """Return the disk's error, one of WAITED, that this error is or that caused it; None where there is none."""
    cause = error.__cause__ if isinstance(error, StoreError) else error
    return cause if isinstance(cause, OSError) and cause.errno in WAITED else None


def unreadable(path: Path, error: Exception, remedy: str = "delete its folder, and it is made again") -> StoreError:
    """Return the error for a file that cannot be read; `remedy`: advice for one that is missing or damaged."""
    if isinstance(error, OSError) and error.errno not in MISSING:
        remedy = "this user needs the rights to read it, and its disk must answer; it is not known to be damaged"
    return StoreError(f"{path} cannot be read ({error}); {remedy}")


def share(path: Path) -> None:
    """Add the read and write permissions of the folder around a new file or folder to its own permissions."""
    mode, around = path.stat().st_mode, path.absolute().parent.stat().st_mode
    wider = mode | around & (0o77 if path.is_dir() else 0o66)
    if wider != mode:
        path.chmod(wider & 0o7777)


@contextmanager
def umask_of(folder: Path) -> Iterator[None]:
    """Context in which files that other code of this process makes get the permissions that `share` gives."""
    mode = folder.stat().st_mode
    own = os.umask(0o77)
    os.umask(own & ~mode)
    try:
        yield
    finally:
        os.umask(own)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if they do not exist."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        share(path)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, link or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path. The file or folder made there is flushed to the disk and renamed to `path`, unless the
    block raises an error."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        share(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            remove(temporary)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the SHA-256 of its canonical text added, so that a reader can detect damage."""
    content = {name: item for name, item in value.items() if name != SEAL}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return {**content, SEAL: hashlib.sha256(text.encode()).hexdigest()}


def unsealed(text: str | bytes, kind: type | None = None) -> dict[str, Any]:
    """The inverse of `sealed`, from the object's text; ValueError where it is damaged or not of this TypedDict."""
    try:
        value = json.loads(text)
        whole = isinstance(value, dict) and sealed(value) == value
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not whole:
        raise ValueError("it does not match its SHA-256")
    del value[SEAL]
    return checked(kind, value) if kind else value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a sealed JSON object, whole or not at all; OSError where the disk is full or cannot be written."""
    write_text(path, json.dumps(sealed(value), indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all; OSError as `write_json`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def read_json(path: Path, kind: type | None = None, **its: Any) -> dict[str, Any]:
    """Read an object of `write_json`. StoreError with the file's name where it is damaged, does not fit this TypedDict,
    or lacks the entries `its`, which tell it from other files of its kind."""
    try:
        value = unsealed(path.read_bytes(), kind)
        if any(value.get(name) != item for name, item in its.items()):
            raise ValueError("it belongs to something else")
    except (ValueError, OSError) as error:
        raise unreadable(path, error, "delete it, and its content is made again") from error
    return value


def whole_lines(path: Path, kind: type) -> list[dict[str, Any]]:
    """Return the sealed JSON objects in a file's lines, without lines that are damaged or do not fit `kind`."""
    found = []
    for line in path.read_text(errors="replace").split("\n"):
        with suppress(ValueError):
            found.append(unsealed(line, kind))
    return found


@with_config(OPEN)
class Point(TypedDict):
    """A point of a stage's record: losses and scores after `images` training images, at a time in unix seconds."""

    images: int
    time: float
    metrics: dict[str, float]


class Record:
    """The record of one stage: metric points as JSON lines in the stage's folder. `text`: the record in the checkpoint
    from which the stage continues; later points are made again."""

    def __init__(self, folder: Path, text: str = ""):
        self.path, self.text = folder / RECORD_FILE, text
        write_text(self.path, text)
        self.points = read_record(folder)

    def add(self, images: int, metrics: Mapping[str, float], judge: str = "") -> None:
        """Append one point: metric name -> value, after `images` training images. `judge`: name of the stage that made
        the scores in it."""
        point = {"images": images, "time": time.time(), "metrics": dict(metrics)} | ({"judge": judge} if judge else {})
        line = json.dumps(sealed(point)) + "\n"
        with open(self.path, "a") as file:
            file.write(line)
        self.text += line
        self.points.append(point)


def read_record(folder: Path) -> list[dict[str, Any]]:
    """Return the points of a stage's record, without a last line that is still being written. StoreError where another
    line is damaged."""
    path = folder / RECORD_FILE
    try:
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [unsealed(line, Point) for line in lines]
    except (ValueError, OSError) as error:
        raise unreadable(path, error) from error
