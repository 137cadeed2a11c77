"""The output store in a bucket (s3://bucket/folder), for clusters whose hosts share no folder.

    done/<name>.json            stage.json of a finished stage: created once, and last, it makes the stage finished
    stages/<name>/<upload>/     its files; stage.json names the upload that counts and the digest of each file
    work/<name>/                a stage in progress, as of a few seconds ago: its checkpoint last
    claims/<name>/<number>      who trains it (sgan.lease)
    all else                    as in a folder

Each host mirrors what it needs in a folder of its own, $SGAN_CACHE or ~/.cache/sgan, which may be deleted at any time
when nothing runs there. The bucket is the truth.
"""

import functools
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from sgan.checks import ConfigError, content_key, require
from sgan.files import StoreError, inside, read_json, sealed, sha256, write_json
from sgan.lease import Leases
from sgan.store import LEDGER, STAGE_FILE, Store

Found = TypeVar("Found")
PAUSES = (1.0, 5.0, 15.0, 30.0, *[60.0] * 60)
"""Seconds between tries where a bucket does not answer: an hour of trouble interrupts nothing."""
PATIENT = 2
"""Tries in silence."""
SYNC = 10.0
"""Seconds between two uploads of a stage in progress."""
FRESH = 1.0
"""Seconds for which a listing counts, or twenty times what it took."""
LAST = "checkpoints/"
"""Files of a stage in progress that are uploaded after the others, which may be newer than they."""
HEAVY = ".safetensors"


@functools.cache
def open_store(address: str) -> Store:
    """The store at an address: a folder's path, or scheme://bucket/folder for what fsspec reaches.

    s3:// is reached with the credentials that botocore finds; another endpoint than AWS's is named by AWS_ENDPOINT_URL
    or in the address: s3://bucket/folder?endpoint_override=127.0.0.1:9000&scheme=http.

    Raises:
        StoreError: it cannot be reached, or not written.
        ConfigError: no address of a store.
    """
    address = address.rstrip("/")
    return BucketStore(address) if is_bucket(address) else Store(address or "/")


def find_store(address: str) -> Store | None:
    """The store at an address, where it is there already; None where no such folder is."""
    return open_store(address) if is_bucket(address) or Path(address).is_dir() else None


def is_bucket(address: str) -> bool:
    """Whether an address names a bucket; ConfigError where it names neither that nor a folder."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return False
    from fsspec.registry import get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"the store {address} cannot be opened ({error}); name a folder that all hosts share, or s3://bucket/folder"
        ) from error
    named = rest.partition("?")[0].partition("/")[0]
    require(bool(named), f"the store {address} names no bucket; name it as s3://bucket/folder")
    return True


def absolute(address: str) -> str:
    """The address of the same store from any folder."""
    return address if is_bucket(address) else str(Path(address).absolute())


def _connect(address: str) -> tuple[Any, str]:
    """fsspec's file system, and the folder in it."""
    from fsspec.core import url_to_fs

    plain, _, query = address.partition("?")
    options: dict[str, Any] = {"use_listings_cache": False}
    given = dict(parse_qsl(query))
    if "endpoint_override" in given:
        options["endpoint_url"] = f"{given.pop('scheme', 'https')}://{given.pop('endpoint_override')}"
    require(
        not given,
        f"the store's address {address} has {', '.join(given)}; only endpoint_override and scheme are known",
    )
    return url_to_fs(plain, **options)


class BucketStore(Store):
    """The store at the address of a bucket, mirrored where needed.

    Raises StoreError where the bucket cannot be reached or written.
    """

    poll = 2.0

    def __init__(self, address: str):
        fs, self.base = _connect(address)
        self.fs = fs
        cache = os.environ.get("SGAN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sgan"
        super().__init__(Path(cache).expanduser() / content_key(address))
        self.address = address
        identity = self.root / "host"
        with super().lock("host"):
            if not identity.exists():
                write_json(identity, {"host": uuid.uuid4().hex})
        self.host = read_json(identity)["host"]
        self.leases = Leases(fs, f"{self.base}/claims", self.host)
        self.listed: set[str] = set()
        self.fresh_until = 0.0
        self.in_progress: dict[str, dict[str, str]] = {}
        self.in_progress_until = 0.0
        self.seen: dict[Path, str] = {}  # what this process has of the stages that others train: path -> ETag
        self.kept: dict[str, tuple[int, int]] = {}  # what this process has uploaded of those it trains
        self.kept_at = 0.0
        self.uploads = ThreadPoolExecutor(1)
        self.upload: Future[None] | None = None
        try:
            fs.pipe_file(f"{self.base}/hosts/{self.host}", b"")
        except Exception as error:
            raise StoreError(
                f"the output store {address} cannot be written ({_first_line(error)}); name a bucket that is there "
                "and that this host's credentials may write with --store"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.address,)

    def stage(self, name: str) -> Path:
        self._pull(name, self.facts(name)["files"])
        return self._folder(name)

    def look(self, name: str) -> Path:
        watched = self._path("watched", name)
        if self.has(name):
            shutil.rmtree(watched, ignore_errors=True)
            self._pull(name, [file for file in self.facts(name)["files"] if not file.endswith(HEAVY)])
            return self._folder(name)
        for file, tag in self._works().get(name, {}).items():
            path = inside(watched, file, self.address)
            if not file.endswith(HEAVY) and self.seen.get(path) != tag and self._get(f"work/{name}/{file}", path):
                self.seen[path] = tag
        return watched

    def weights(self, digest: str) -> Path:
        path = super().weights(digest)
        if not path.exists():
            self.fetch(path)
        return path

    def sweeps(self) -> list[str]:
        self.fetch(self.root / "sweeps")
        return super().sweeps()

    def note(self, event: str, **about: Any) -> None:
        super().note(event, **about)
        path = self._own_ledger()
        self.uploads.submit(lambda: self.fs.put_file(str(path), f"{self.base}/{LEDGER}/{path.name}"))

    def save(self, path: Path) -> None:
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        for file in files:
            self._put(file, str(file.relative_to(self.root)))

    def fetch(self, path: Path) -> None:
        relative = str(path.relative_to(self.root))
        for found in self._find(relative):
            self._get(found, self.root / found)

    def has(self, name: str) -> bool:
        if name not in self.listed and time.monotonic() > self.fresh_until:
            self._list()
        return name in self.listed

    def _list(self) -> None:
        began = time.monotonic()
        self.listed = {Path(found).stem for found in self._find("done")}
        self.fresh_until = time.monotonic() + max(FRESH, 20 * (time.monotonic() - began))

    def renew(self) -> None:
        self.fresh_until = 0.0

    def finished(self, beginning: str) -> list[str]:
        self._list()
        return sorted(name for name in self.listed if name.startswith(beginning))

    def facts(self, name: str) -> dict[str, Any]:
        path = self._path("done", f"{name}.json")
        if not path.exists() and not self._get(f"done/{name}.json", path):
            raise StoreError(f"the stage {name} is not in {self.address}: its done/{name}.json was deleted")
        return read_json(path, name=name)

    def _file(self, name: str, file: str) -> Path:
        if file in self.facts(name)["files"]:
            self._pull(name, [file])
        return super()._file(name, file)

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        with self.alone(name) as ours:
            if ours:
                if (self._folder(name) / STAGE_FILE).exists():  # finished here, and then the upload was interrupted
                    self._finish(name)
                self._list()
            yield ours and not self.has(name)

    @contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        with super().alone(name) as here:
            if not here:
                yield False
                return
            number = self._patiently(lambda: self.leases.take(name))
            if number is None:
                yield False
                return
            with self.leases.held(name, number):
                yield True

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        while True:
            with self.alone(name) as ours:
                if ours:
                    yield
                    return
            time.sleep(self.poll / 4)

    def begin(self, name: str) -> Path:
        """What the bucket has of the stage replaces what this host has: another one may have gone on with it."""
        folder = self.work(name)
        shutil.rmtree(folder, ignore_errors=True)
        self.kept.clear()
        for found in self._find(f"work/{name}"):
            if self._get(found, self.root / found):
                self.kept[found] = _identity(self.root / found)
        self.kept_at = time.monotonic()
        return super().begin(name)

    def keep(self, name: str, now: bool = False) -> None:
        if now and self.upload:
            self.upload.result()
        if not now and (time.monotonic() - self.kept_at < SYNC or (self.upload and not self.upload.done())):
            return
        self.kept_at = time.monotonic()
        self.upload = self.uploads.submit(self._keep, name)
        if now:
            self.upload.result()
            super().keep(name, now)

    def _keep(self, name: str) -> None:
        """Bring the bucket's copy of a work folder up to date."""
        folder = self.work(name)
        with suppress(Exception):  # the bucket does not answer, or a file was just replaced: the next time will do
            files = [str(path.relative_to(folder)) for path in folder.rglob("[!.]*") if path.is_file()]
            for file in sorted(files, key=lambda file: (file.startswith(LAST), file)):
                key, now = f"work/{name}/{file}", _identity(folder / file)
                if self.kept.get(key) != now:
                    self.fs.put_file(str(folder / file), f"{self.base}/{key}")
                    self.kept[key] = now
            for key in [key for key in self.kept if not (self.root / key).exists()]:
                self.fs.rm_file(f"{self.base}/{key}")
                del self.kept[key]

    def publish(self, name: str, facts: Mapping[str, Any], drop: tuple[str, ...] = ()) -> None:
        if self.upload:
            self.upload.result()
        folder = self._folder(name)
        if folder.exists():  # of a stage that was deleted in the bucket
            shutil.rmtree(folder)
        super().publish(name, facts, drop)
        self._finish(name)

    def _finish(self, name: str) -> None:
        """Upload a stage that this host finished. Where another host was faster, its stage is the one."""
        folder, upload = self._folder(name), uuid.uuid4().hex[:12]
        facts = read_json(folder / STAGE_FILE)
        for file in facts["files"]:
            self._put(super()._file(name, file), f"stages/{name}/{upload}/{file}")
        body = json.dumps(sealed(facts | {"upload": upload}), indent=1).encode()
        try:
            self._patiently(lambda: self.fs.pipe_file(f"{self.base}/done/{name}.json", body, mode="create"))
        except FileExistsError:
            self.note("stage discarded", stage=name)
            self._remove(f"stages/{name}/{upload}")
            shutil.rmtree(folder)
        (folder / STAGE_FILE).unlink(missing_ok=True)  # what is left is a mirror
        self.listed.add(name)
        self._remove(f"work/{name}")

    def _pull(self, name: str, files: Any) -> None:
        """Bring files of a finished stage here, each checked against its digest."""
        facts = self.facts(name)
        for file in files:
            path = super()._file(name, file)
            if path.exists():
                continue
            source = f"stages/{name}/{facts['upload']}/{file}"
            if not self._get(source, path, facts["files"][file]):
                raise StoreError(
                    f"{source} in {self.address} is missing or damaged; delete done/{name}.json there, and the stage "
                    "is trained again"
                )

    def _works(self) -> dict[str, dict[str, str]]:
        """The stages in progress: name -> file -> ETag."""
        if time.monotonic() > self.in_progress_until:
            began, found = time.monotonic(), {}
            for path, info in self._find("work").items():
                name, _, file = path.removeprefix("work/").partition("/")
                found.setdefault(name, {})[file] = str(info.get("ETag") or info.get("mtime") or info["size"])
            self.in_progress = found
            self.in_progress_until = time.monotonic() + max(FRESH, 20 * (time.monotonic() - began))
        return self.in_progress

    def _find(self, folder: str) -> dict[str, dict[str, Any]]:
        """Files below a folder of the bucket, or the file of that name: path from the store's root -> what fsspec says
        of it. StoreError where one has a name that leads out of the folder that mirrors the store."""
        found = self._patiently(lambda: self.fs.find(f"{self.base}/{folder}", detail=True))
        files = {path: info for path, info in found.items() if info["type"] == "file"}  # see Leases._numbers
        named = {path.removeprefix(f"{self.base}/"): info for path, info in files.items()}
        for name in named:
            inside(self.root, name, self.address)
        return named

    def _put(self, path: Path, name: str) -> None:
        self._patiently(lambda: self.fs.put_file(str(path), f"{self.base}/{name}"))

    def _get(self, name: str, path: Path, digest: str = "") -> bool:
        """Bring a file here, whole or not at all; False where it is not there or has another digest."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            self._patiently(lambda: self.fs.get_file(f"{self.base}/{name}", str(temporary)))
            if digest and sha256(temporary) != digest:
                return False
            os.replace(temporary, path)
        except FileNotFoundError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _remove(self, folder: str) -> None:
        for name in self._find(folder):
            self._patiently(lambda name=name: self.fs.rm_file(f"{self.base}/{name}"))

    def _patiently(self, call: "Callable[[], Found]") -> Found:
        """Call again while the bucket does not answer; StoreError where it does not for an hour, or refuses."""
        for number, pause in enumerate((*PAUSES, None)):
            try:
                return call()
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:  # botocore's, aiohttp's, the file system's
                if pause is None or isinstance(error, PermissionError):
                    raise StoreError(
                        f"the output store {self.address} does not answer ({_first_line(error)}); what is finished "
                        "stays there, and the same command goes on"
                    ) from error
                if number == PATIENT:
                    print(
                        f"the output store {self.address} does not answer ({_first_line(error)}); waiting for it",
                        file=sys.stderr,
                        flush=True,
                    )
                time.sleep(pause)
        raise AssertionError


def _identity(path: Path) -> tuple[int, int]:
    """What changes when a file is written anew."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
