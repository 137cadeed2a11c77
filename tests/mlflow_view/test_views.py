"""The page that the printed link opens, in a real browser."""

import base64
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from urllib.request import urlopen

import pytest
from handmade import KEY, client_of, finish, found, manifest, new, publish, stage_name, sync, train
from waiting import wait_for

from sgan.store.local import Store
from sweeps.mlflow_view.connection import VIEW, default_uri, pages
from sweeps.mlflow_view.content import CHARTS

FIDS = {("sgan", 0): 10.0, ("sgan", 1): 30.0, ("sgan-no-joint", 0): 50.0, ("sgan-no-joint", 1): 70.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A sweep of two variants and two seeds, whose FIDs differ."""
    made = new(tmp_path_factory.mktemp("views"))
    manifest(made, seeds=(0, 1))
    for (variant, seed), fid in FIDS.items():
        train(made, stage_name("score", variant, seed), points=())
        publish(made, stage_name("score", variant, seed), fid=fid)
        finish(made, variant, seed)
    sync(made)
    return made


def state(store: Store, key: str) -> dict:
    experiment = client_of(store).get_experiment(found(store)[0].info.experiment_id)
    packed = json.loads(experiment.tags[f"{VIEW}{key}"])["state"]
    return json.loads(zlib.decompress(base64.b64decode(packed.removeprefix("deflate;"))))


def test_both_views_are_saved_in_the_form_of_mlflows_page(store):
    table, charts = state(store, KEY), state(store, f"{KEY}{CHARTS}")
    assert (table["orderByKey"], table["orderByAsc"]) == ("metrics.`fid`", True)
    assert table["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "variant"}]
    assert len(table["selectedColumns"]) == 5
    assert "compareRunCharts" not in table
    sections = {section["uuid"] for section in charts["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in charts["compareRunCharts"]} == sections
    assert pages(default_uri(store), KEY).endswith(f"&viewStateShareKey={KEY}")
    assert "viewStateShareKey" not in pages(default_uri(store), "another")


@pytest.fixture(scope="module")
def address(store) -> Iterator[str]:
    """Of MLflow's pages over the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "mlflow", "ui", "--backend-store-uri", default_uri(store), "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(os.devnull, "w") as nowhere:
        server = subprocess.Popen(
            [sys.executable, *words], env=environment, stdout=nowhere, stderr=nowhere, start_new_session=True
        )

    def answers() -> bool:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
        return False

    try:
        wait_for(answers)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)


@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no chromium (Debian's package)")
def test_the_printed_link_shows_variants_and_their_means_the_best_first(store, address, tmp_path):
    page = pages(default_uri(store), KEY).rpartition("http://127.0.0.1:5000")[2]
    quiet = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    quiet += ["disable-component-update", "disable-sync", f"user-data-dir={tmp_path}", "virtual-time-budget=60000"]
    command = ["chromium", "--headless", *(f"--{word}" for word in quiet), "--window-size=2000,900", "--dump-dom"]
    done = subprocess.run([*command, f"{address}{page}"], check=True, capture_output=True, text=True, timeout=120)
    text = html.unescape(re.sub(r"<[^>]*>", "\n", done.stdout))
    groups = re.findall(r"Group:\s+([\w-]+)", text)
    means = [float(value) for value in re.findall(r"([\d.]+)\s+\(average\)", text)]
    assert groups == ["sgan", "sgan-no-joint"]
    assert [value for value in means if value in (20.0, 60.0)] == [20.0, 60.0]
