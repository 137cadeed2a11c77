"""A cluster's MLflow server, on a real PostgreSQL and a real S3 API: many sweeps write at once, and nothing is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import s3fs
from handmade import GRID_IMAGES, KEY, LABELS, POINTS, manifest, publish, stage_name, train
from mlflow import MlflowClient
from s3 import serve

from sgan.store.files import read_record
from sgan.store.local import FIGURES, GRIDS, Store
from sweeps.mlflow_view.content import HEADLINES
from sweeps.mlflow_view.runs import find
from sweeps.mlflow_view.sync import sync
from sweeps.planning import manifest as manifests

POSTGRES = "postgresql://postgres@127.0.0.1:5432"
WRITERS, VARIANT = 16, "sgan-no-joint"


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A database of its own, as SQLAlchemy addresses it."""
    name = f"sgan_{uuid.uuid4().hex[:12]}"
    try:
        connection = psycopg.connect(f"{POSTGRES}/postgres", autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL answers at {POSTGRES}: {error}")
    with connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    yield f"{POSTGRES.replace('postgresql', 'postgresql+psycopg')}/{name}"
    with psycopg.connect(f"{POSTGRES}/postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Address of an output store on a real S3 API."""
    with serve() as api:
        yield api.bucket("store")


@pytest.fixture(scope="module")
def server(database, bucket, tmp_path_factory) -> Iterator[str]:
    """Address of the server that clusters/mlflow.sh starts, on a port of its own, with its artifacts in a bucket."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (folder / ".sgan.env").write_text(
        f"export PATH={Path(sys.executable).parent}:$PATH SGAN_STATE={folder} SGAN_STORE={bucket}\n"
        f"export MLFLOW_TRACKING_URI=http://127.0.0.1:{port} SGAN_MLFLOW_DATABASE={database}\n"
    )
    script = Path(__file__).parents[2] / "clusters" / "mlflow.sh"
    # What the caller's own connections are like must not decide how the server keeps its: it would not start.
    environment = os.environ | {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool", "HOME": str(folder)}
    log = folder / "log"
    with open(log, "w") as said:
        process = subprocess.Popen([script, "serve"], env=environment, start_new_session=True, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 200
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert time.monotonic() < deadline, f"the server does not answer: {log.read_text()[-2000:]}"
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def sweep(folder: Path, number: int) -> Store:
    """A store with a sweep of its own, of one trial."""
    store = Store(folder / f"store-{number}")
    manifest(store)
    content = manifests.read(store, KEY)
    content["trials"] = [trial for trial in content["trials"] if trial["variant"] == VARIANT]
    manifests.write(store, content | {"key": f"sweep{number}", "title": f"sweep {number}"})
    return store


def write(folder: Path, number: int, server: str) -> Store:
    """What a driver and its uploader do: stages grow and end while passes send them."""
    store = sweep(folder, number)
    for label in LABELS[VARIANT]:
        name = stage_name(label, VARIANT, 0)
        if label != "score":
            train(store, name, POINTS[:2], GRID_IMAGES[:1])
            sync(store, f"sweep{number}", server, live=True)
            train(store, name, POINTS[2:], GRID_IMAGES[1:], done=POINTS[1])
        else:
            train(store, name, ())
        publish(store, name)
    sync(store, f"sweep{number}", server)
    return store


def lacking(store: Store, number: int, server: str, folder: Path) -> list[str]:
    """What MLflow has not, or has otherwise than the store: every file of every trial, and every point but those of the
    curves that go through all stages, which tests/mlflow_view compares."""
    client, wrong = MlflowClient(server), []
    parent, runs = find(client, f"sweep{number}")
    trials = manifests.read(store, f"sweep{number}")["trials"]
    assert parent is not None
    assert parent.info.status == "FINISHED"
    assert set(runs) == {trial["run"] for trial in trials}
    for trial in trials:
        run = runs[trial["run"]]
        files, grids = client.download_artifacts(run.info.run_id, "", str(fresh(folder))), 0
        for stage in trial["stages"]:
            source = store.stage(stage["name"])
            expected: dict[str, list[tuple[int, float]]] = {}
            for line in read_record(source):
                own = {name: value for name, value in line["metrics"].items() if name not in HEADLINES}
                for name, value in own.items():
                    expected.setdefault(f"{stage['label']}/{name}", []).append((line["images"], value))
            for key, points in expected.items():
                got = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
                wrong += [f"{trial['run']} {key}: {got}"] if sorted(got) != points else []
            for grid in (source / GRIDS).glob("*.png"):
                found = list(Path(files).glob(f"images/{stage['label']}+step+{int(grid.stem)}+*.png"))
                if [path.read_bytes() for path in found] != [grid.read_bytes()]:
                    wrong.append(f"{trial['run']} {stage['label']}/{grid.name}: {len(found)} files")
                grids += 1
        figure = Path(files) / FIGURES / "classes.png"
        if (
            not figure.exists()
            or figure.read_bytes() != (store.stage(trial["name"]) / FIGURES / figure.name).read_bytes()
        ):
            wrong.append(f"{trial['run']}: {figure.name}")
        if json.loads((Path(files) / "config.json").read_text()) != trial["config"]:
            wrong.append(f"{trial['run']}: config.json")
        assert grids == len(LABELS[trial["variant"]]) * len(GRID_IMAGES)
    return wrong


def fresh(folder: Path) -> Path:
    made = folder / uuid.uuid4().hex
    made.mkdir()
    return made


@pytest.mark.slow
def test_many_sweeps_at_once_lose_nothing(server, bucket, tmp_path):
    MlflowClient(server)
    with ThreadPoolExecutor(WRITERS) as pool:
        stores = list(pool.map(lambda number: write(tmp_path, number, server), range(WRITERS)))
        found = pool.map(lambda number: lacking(stores[number], number, server, tmp_path), range(WRITERS))
        assert [one for each in found for one in each] == []
    kept = s3fs.S3FileSystem().find(f"{bucket}/mlartifacts")
    assert sum(path.endswith("config.json") for path in kept) == WRITERS
    run = next(iter(find(MlflowClient(server), "sweep0")[1].values()))
    MlflowClient(server).log_metric(run.info.run_id, "encoder/g_adv", 9.0, step=150)
    assert lacking(stores[0], 0, server, tmp_path)  # a difference is seen
