"""The output store in a bucket (s3://bucket/folder), for hosts that share no folder.

    done/<name>.json            stage.json of a finished stage: created once, after its files; it marks the stage done
    stages/<name>/<upload>/     its files; stage.json names the valid upload and the digest of each file
    work/<name>/                a stage in progress, uploaded every few seconds, the checkpoints after the other files
    claims/<name>               the process that trains it (sgan.store.claims)
    other files                 as in a folder

Each host copies the files that it needs to its own folder, $SGAN_CACHE, or sgan in $XDG_CACHE_HOME or ~/.cache.
This folder may be deleted whenever no process uses it. The bucket's files are the valid ones.
"""

import fnmatch
import functools
import json
import os
import platform
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from s3fs import S3FileSystem

from sgan.addresses import is_bucket, masked, store_address
from sgan.checks import content_key
from sgan.store.claims import BEAT, EXPIRY, Leases, swap
from sgan.store.files import StoreError, atomic_write, inside, read_json, remove, sealed, sha256, write_json
from sgan.store.local import CHECKPOINTS, LEDGER, STAGE_FILE, Facts, LostClaim, Store

PAUSES = (1.0, 5.0, 15.0, 30.0, *[60.0] * 60)
"""Seconds between attempts while a bucket does not answer: commands survive an hour of that."""
NOTED = 2.0  # Seconds for which a command waits until an event is in the bucket, at most
SYNC = 10.0  # Seconds between two uploads of a stage in progress
FRESH = 1.0  # Seconds for which a listing is valid, at least; a slow one is valid for 20 times its own duration
HEAVY = ".safetensors"  # Suffix of files that are not needed to watch a stage


@functools.cache
def open_store(address: str, there: bool = False) -> Store:
    """The store at an address: a folder's path, or s3://bucket/folder, which is reached with the credentials and at the
    endpoint that botocore finds. ConfigError where it cannot be written or, if it is `there` to be read, not read."""
    address = store_address(address)
    return BucketStore(address, there) if is_bucket(address) else Store(address, there)


def find_store(address: str) -> Store | None:
    """Return the existing store at an address, to read; None where there is no such folder.
    StoreError where a bucket cannot be read."""
    address = store_address(address)
    there = is_bucket(address) or any(Path(address, name).is_dir() for name in ("stages", "sweeps"))
    return open_store(address, there=True) if there else None


class BucketStore(Store):
    """The store at the address of a bucket; StoreError where that cannot be reached or written."""

    advice = "name a writable folder for the host's copies in SGAN_CACHE"
    expiry = EXPIRY + 2 * BEAT

    def __init__(self, address: str, there: bool = False):
        self.fs = S3FileSystem(use_listings_cache=False)
        self.fs.retries = 1  # botocore makes five attempts itself: 25 would hold a command for minutes
        self.base = address.removeprefix("s3://")
        cache = os.environ.get("SGAN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sgan"
        super().__init__(Path(cache).expanduser() / content_key(address))
        self.address = address
        identity = self.root / "host"
        if not identity.exists():
            write_json(identity, {"host": uuid.uuid4().hex})
        host = f"{platform.node()}-{read_json(identity)['host']}"  # a disk may be copied, or a home folder shared
        self.leases = Leases(self.fs, f"{self.base}/claims", host)
        self.listings: dict[str, tuple[dict[str, str], float]] = {}  # folder -> its files, and until when they count
        self.mirrored: dict[Path, tuple[str, tuple[int, int]]] = {}  # path -> ETag and identity of a fetched file
        self.kept: dict[str, tuple[int, int]] = {}  # key -> identity of an uploaded file of a stage in progress
        self.kept_at = 0.0
        self.uploads = ThreadPoolExecutor(1)
        self.upload = self.uploads.submit(lambda: None)
        try:
            if there:
                self.fs.find(f"{self.base}/hosts")
            else:
                self.fs.pipe_file(f"{self.base}/hosts/{host}", b"")
        except Exception as error:
            trouble = masked(f"the output store {address} cannot be {'read' if there else 'written'} ({error!r:.200})")
            advice = "with --store, name an existing bucket that this host's credentials may use"
            raise StoreError(f"{trouble}; {advice}") from error

    def stage(self, name: str) -> Path:
        self._pull(name, lambda _: True)
        return super().stage(name)

    def look(self, name: str) -> Path:
        watched = inside(self.root / "watched", name)
        if self.has(name):
            remove(watched)
            self._pull(name, lambda file: not file.endswith(HEAVY))
            return super().stage(name)
        for file, tag in self._in_progress(name).items():
            if not file.endswith(HEAVY):
                self._mirror(f"work/{name}/{file}", tag, inside(watched, file))
        return watched

    def checkpoint(self, name: str) -> str:
        heads = fnmatch.filter(self._in_progress(name), f"{CHECKPOINTS}/*.json")
        return max((Path(head).parent.name for head in heads), default="")

    def _in_progress(self, name: str) -> dict[str, str]:
        """Files of a stage in progress: path in its folder -> ETag."""
        files, folder = self._list("work"), f"work/{name}/"
        return {file.removeprefix(folder): tag for file, tag in files.items() if file.startswith(folder)}

    def note(self, event: str, **about: Any) -> Path:
        path = super().note(event, **about)

        def send() -> None:
            with suppress(Exception):  # the bucket does not answer
                self.fs.put_file(str(path), f"{self.base}/{LEDGER}/{path.name}")

        sender = Thread(target=send, daemon=True)  # a bucket that hangs must not hold this process when it ends
        sender.start()
        sender.join(NOTED)
        return path

    def save(self, path: Path) -> None:
        self._put(path, path.relative_to(self.root).as_posix())

    def fetch(self, path: Path) -> None:
        for found, tag in self._find(path.relative_to(self.root).as_posix()).items():
            self._mirror(found, tag, inside(self.root, found))

    def renew(self) -> None:
        self.listings.clear()

    def lacks(self, path: Path) -> bool:
        name = path.relative_to(self.root).as_posix()  # a killed process may have left a copy here that was never sent
        return super().lacks(path) or name not in self._list(name.partition("/")[0])

    def has(self, name: str) -> bool:
        path = f"done/{name}.json"
        return path in self.listings.get("done", ({}, 0))[0] or path in self._list("done")

    def facts(self, name: str) -> dict[str, Any]:
        path = inside(self.root / "done", f"{name}.json")
        if not path.exists() and not self._get(f"done/{name}.json", path):
            raise StoreError(f"the stage {name} is not in {masked(self.address)}: its done/{name}.json was deleted")
        return read_json(path, Facts, name=name)

    def file(self, name: str, file: str) -> Path:
        self._pull(name, lambda each: each == file)
        return super().file(name, file)

    def held(self, name: str) -> bool:
        return super().held(name) or self._patiently(lambda: self.leases.held(name))

    @contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        with super().alone(name) as here:
            token = self._patiently(lambda: self.leases.take(name)) if here else None
            with self.leases.kept(name, token) if token else nullcontext():
                if token and (super().stage(name) / STAGE_FILE).exists():  # finished here, and then the upload stopped
                    self._finish(name)
                yield bool(token)

    def begin(self, name: str) -> Path:
        self.upload.result()  # of a stage that ended with an error
        remove(self.work(name))  # another host may have continued it
        paths = {found: inside(self.root, found) for found in self._find(f"work/{name}")}
        self.kept = {found: _identity(path) for found, path in paths.items() if self._get(found, path)}
        self.kept_at = time.monotonic()
        return super().begin(name)

    def keep(self, name: str, now: bool = False) -> None:
        if name in self.leases.lost:
            raise LostClaim(f"another host has taken over the claim of {name}, which was silent for too long")
        if now or (time.monotonic() - self.kept_at > SYNC and self.upload.done()):
            self.kept_at = time.monotonic()
            self.upload = self.uploads.submit(self._keep, name)
        if now:
            self.upload.result()
            super().keep(name, now)

    def _keep(self, name: str) -> None:
        """Bring the bucket's copy of a work folder up to date: checkpoints last, and in each its JSON file last."""
        folder = self.work(name)
        with suppress(Exception):  # the bucket does not answer, or a file was just replaced: the next call repeats it
            files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            for file in sorted(files, key=lambda file: (file.startswith(CHECKPOINTS), file.endswith(".json"), file)):
                key, identity = f"work/{name}/{file}", _identity(folder / file)
                if self.kept.get(key) != identity and "/." not in key:  # a dot begins names of unfinished files
                    self.fs.put_file(str(folder / file), f"{self.base}/{key}")
                    self.kept[key] = identity
            for key in [key for key in self.kept if not (self.root / key).exists()]:
                self.fs.rm_file(f"{self.base}/{key}")
                del self.kept[key]

    def publish(self, name: str, facts: Mapping[str, Any]) -> None:
        self.upload.result()
        super().publish(name, facts)
        self._finish(name)

    def _finish(self, name: str) -> None:
        """Upload a stage that this host finished. Where another host was faster, its stage counts; drop this one."""
        folder, upload = super().stage(name), uuid.uuid4().hex[:12]
        facts = read_json(folder / STAGE_FILE, Facts) | {"upload": upload}
        for file in facts["files"]:
            self._put(inside(folder, file), f"stages/{name}/{upload}/{file}")
        done, body = f"done/{name}.json", json.dumps(sealed(facts), indent=1).encode()
        if not self._patiently(lambda: swap(self.fs, f"{self.base}/{done}", body)):
            self.note("stage discarded", stage=name)
            self._remove(f"stages/{name}/{upload}")
            remove(folder)
        remove(folder / STAGE_FILE)  # the rest stays as a copy of the bucket
        remove(self.root / done)
        self._list("done")[done] = ""
        self._remove(f"work/{name}")

    def _pull(self, name: str, wanted: Callable[[str], bool]) -> None:
        """Download the wanted files of a finished stage, each checked against its digest."""
        facts, done = self.facts(name), f"done/{name}.json"
        if (super().stage(name) / STAGE_FILE).exists():  # this host finished it, too, and another one sent it first
            with super().alone(name) as here:
                if here:  # otherwise a process of this host is sending it
                    remove(super().stage(name))
        for file in filter(wanted, facts["files"]):
            path, source = inside(super().stage(name), file), f"stages/{name}/{facts['upload']}/{file}"
            if not path.exists() and not self._get(source, path, facts["files"][file]):
                remove(self.root / done)  # its next copy may be of the stage trained again
                damaged = f"{source} in {masked(self.address)} is missing or damaged"
                again = f"delete {done} there, and the copy {self.root} on each host while no process uses it"
                raise StoreError(f"{damaged}; {again}: then the stage is trained again")

    def _find(self, folder: str) -> dict[str, str]:
        """Files below a folder of the bucket, or the file of that name: path from the store's root -> ETag."""
        found = dict(self._patiently(lambda: self.fs.find(f"{self.base}/{folder}", detail=True)))
        # s3fs finds the folder itself where its first object appears between two of its requests.
        files = {path: info["ETag"] for path, info in found.items() if info["type"] == "file"}
        return {path.removeprefix(f"{self.base}/"): tag for path, tag in files.items()}

    def _list(self, folder: str) -> dict[str, str]:
        """The same as `_find`, from a listing that may be some moments old."""
        files, until = self.listings.get(folder, ({}, 0.0))
        if (began := time.monotonic()) > until:
            files = self._find(folder)
            self.listings[folder] = files, time.monotonic() + max(FRESH, 20 * (time.monotonic() - began))
        return files

    def _mirror(self, source: str, tag: str, path: Path) -> None:
        """Download a file, unless this process has done so and neither copy has changed since."""
        fresh = path.exists() and self.mirrored.get(path) == (tag, _identity(path))
        if not fresh and self._get(source, path):
            self.mirrored[path] = tag, _identity(path)

    def _put(self, path: Path, name: str) -> None:
        self._patiently(lambda: self.fs.put_file(str(path), f"{self.base}/{name}"))

    def _get(self, name: str, path: Path, digest: str = "") -> bool:
        """Download a file, whole or not at all; False where the bucket lacks it or it has another digest."""
        with suppress(FileNotFoundError), atomic_write(path) as temporary:
            self._patiently(lambda: self.fs.get_file(f"{self.base}/{name}", str(temporary)))
            if digest and sha256(temporary) != digest:
                raise FileNotFoundError(name)
            return True
        return False

    def _remove(self, folder: str) -> None:
        with suppress(FileNotFoundError):
            self._patiently(lambda: self.fs.rm(f"{self.base}/{folder}", recursive=True))

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Repeat a call while the bucket does not answer; StoreError after an hour, or where the bucket refuses it."""
        for number, pause in enumerate((*PAUSES, None)):
            try:
                return call()
            except (FileNotFoundError, StoreError):
                raise
            except Exception as error:  # botocore's, aiohttp's, the file system's
                trouble = masked(f"the output store {self.address} does not answer ({error!r:.200})")
                if pause is None or isinstance(error, PermissionError):
                    advice = "finished stages stay there, and the same command goes on"
                    raise StoreError(f"{trouble}; {advice}") from error
                if number == 2:  # short trouble is not reported
                    print(f"{trouble}; waiting for it", file=sys.stderr, flush=True)
                time.sleep(pause)


def _identity(path: Path) -> tuple[int, int]:
    """Return a pair that changes when a file is written again: its inode and its time of modification in ns."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
