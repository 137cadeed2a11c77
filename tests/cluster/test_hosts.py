"""Three hosts: an ablation over them while one loses its power and one its network, and what a stranger can reach."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from cluster_chaos import SMALL, SWEEP, Round, scores, start_alone, table, weights
from hosts import BIN, S3_HOST, STRANGER, WORKERS, Bucket, Cluster, start_cluster
from namespaces import ROOT, Host, lacking, wait_for

from sgan.store.files import read_json
from sgan.store.local import Store

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(lacking()), reason=lacking()),
]

DASHBOARD, MLFLOW, POSTGRES, GCS, CLIENT, OPEN = 8265, 5000, 5432, 6379, 10001, 9999
GIVEN_UP = 60.0  # Seconds until the stages of a host without a cable start again
KINDS = sorted(["judge"] + 2 * (["encoder"] + 3 * ["level"] + ["joint"] + 3 * ["score"]))


def stages(store: Path) -> dict[str, float]:
    """Finished stages, and when each was finished."""
    return {path.parent.name: read_json(path)["finished"] for path in (store / "stages").glob("*/stage.json")}


def held(store: Path, host: str) -> set[str]:
    """The stages that a host has in progress, by the ledger."""
    found: dict[str, str] = {}
    for event in Store(store).events():
        if event["event"] in ("stage begun", "stage resumed"):
            found[event["stage"]] = event["host"]
        elif event["event"] in ("stage stopped", "stage published"):
            found.pop(event["stage"], None)
    return {stage for stage, holder in found.items() if holder == host}


def ports(host: Host) -> dict[int, set[str]]:
    """The TCP ports of a host that are listened on, and at which addresses."""
    found: dict[int, set[str]] = {}
    for line in host.run("ss", "-ltnH").stdout.splitlines():
        address, _, port = line.split()[3].rpartition(":")
        found.setdefault(int(port), set()).add(address.removeprefix("[::ffff:").strip("[]"))
    return found


def probe(cluster: Cluster, host: Host, numbers: Iterable[int]) -> dict[int, dict[str, str]]:
    """What the stranger gets from the ports of a host."""
    script = str(ROOT / "tests" / "cluster" / "probe.py")
    words = (str(BIN / "python"), script, host.address, *map(str, numbers))
    found = map(json.loads, cluster.network[STRANGER].run(*words, timeout=200).stdout.splitlines())
    return {each.pop("port"): each for each in found}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with start_cluster(tmp_path_factory.mktemp("hosts"), tmp_path_factory.mktemp("shared")) as made:
        yield made


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Iterator[Callable[[], tuple[Path, str]]]:
    """The same sweep on this machine alone, which begins here: gives its store and what it said, once it has ended."""
    process, ended = start_alone(tmp_path_factory.mktemp("alone") / "runs")
    yield ended
    process.kill()
    process.wait()


def test_a_stranger_on_the_network_gets_nothing(cluster: Cluster):
    head, worker = cluster.head, cluster.network[WORKERS[0]]
    wait_for(lambda: MLFLOW in ports(head), 60, "MLflow's start")
    serve = f"{BIN / 'python'} -m http.server --bind {head.address} --directory /mnt {OPEN}"
    control = subprocess.Popen(head.command("timeout", "300", "bash", "-c", serve), stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: OPEN in ports(head), 30, "the open port")
        for host in (head, worker):
            listened = ports(host)
            found = probe(cluster, host, listened)
            assert set(found) == set(listened)
            if host is head:
                assert found.pop(OPEN)["http"] == "200"  # the probe sees what is open
                closed = {DASHBOARD, MLFLOW} | ({POSTGRES} if cluster.postgres else set())
                assert {number: found[number]["tcp"] for number in closed} == dict.fromkeys(closed, "refused")
                assert found[GCS]["NodeInfoGcsService/GetAllNodeInfo"] == "UNAUTHENTICATED"
                assert found[CLIENT]["RayletDriver/ClusterInfo"] == "UNAUTHENTICATED"
            answers = {number: {*each.values()} - {"open", "refused"} for number, each in found.items()}
            allowed = {"none", "401", "UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE"}
            assert {number: got for number, got in answers.items() if not got <= allowed} == {}
    finally:
        control.kill()
        control.wait()


def test_only_the_token_opens_the_cluster(cluster: Cluster):
    stranger, nodes = (
        cluster.network[STRANGER],
        [str(BIN / "ray"), "status", "--address", f"{cluster.head.address}:{GCS}"],
    )
    token = cluster.on_head("ray get-auth-token").strip()
    assert len(token) >= 32

    def status(**settings: str) -> subprocess.CompletedProcess[str]:
        words = [f"{name}={value}" for name, value in settings.items()]
        return stranger.run("env", *words, *nodes, timeout=100, check=False)

    assert "3 local.cluster.node" in status(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token).stdout
    for wrong in (status(RAY_AUTH_MODE="disabled"), status(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 64)):
        assert wrong.returncode != 0
        assert "local.cluster.node" not in wrong.stdout
    for host in (cluster.head, cluster.network[WORKERS[0]]):
        assert host.run("stat", "--format=%a", "/root/.ray/auth_token").stdout.strip() == "600"


def test_the_user_reaches_mlflow_through_ssh_and_it_comes_back(cluster: Cluster):
    control = cluster.network.control
    tunnel = subprocess.Popen(
        cluster.user(
            "ray", "attach", "--no-config-cache", "-p", str(MLFLOW), "-p", str(DASHBOARD), str(cluster.config)
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers(port: int) -> bool:
        url = f"http://127.0.0.1:{port}"
        return control.run("curl", "-sf", "--max-time", "5", "-o", "/dev/null", url, check=False).returncode == 0

    try:
        wait_for(lambda: answers(MLFLOW), 60, "MLflow's answer")
        wait_for(lambda: answers(DASHBOARD), 60, "the dashboard's answer")
        listening = cluster.head.run("ss", "-ltnpH", f"sport = :{MLFLOW}").stdout
        cluster.head.run("kill", "-9", *re.findall(r"pid=(\d+)", listening))
        assert not answers(MLFLOW)
        wait_for(lambda: answers(MLFLOW), 90, "MLflow's return")
    finally:
        tunnel.kill()
        tunnel.wait()


def test_a_folder_that_the_hosts_do_not_share_is_refused(cluster: Cluster):
    """Every host has a /tmp of its own."""
    script = ROOT / "sweeps" / "ablation.py"
    command = f". ~/.sgan.env; {BIN / 'python'} {script} {' '.join(SWEEP)} --store /tmp/mine"
    done = cluster.head.run("bash", "-c", command, timeout=100, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(r"error: the output store /tmp/mine is not shared: the node \w+ does not see the", done.stdout)
    assert not list(Path("/tmp/mine").glob("*"))


# Where few configs collapse, however short they train.
SEARCH = (
    *("--dataset", "digits", "--trials", "5", "--variant", "sgan-no-joint", "--splits", "none", "fc3"),
    *("--adversarial", "0.5", "1", "--conditional", "1", "2", "--entropy", "5", "10", "--zeros"),
    *("--override", *SMALL, "image_level=6400", "feature_level=3200", "gan.adam.learning_rate=2e-3"),
)
STUDY = """
import json, optuna, sys
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sgan.store.s3 import open_store
optuna.logging.set_verbosity(optuna.logging.ERROR)
store = open_store(sys.argv[1])
store.fetch(store.root / "sweeps")
(place,) = (store.root / "sweeps").glob("*/optuna.log")
study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(place))))
print(json.dumps([[each.state.name, each.values] for each in study.trials]))
"""


def without_fault(cluster: Cluster, store: str, words: str) -> str:
    """The output of a command on the store. Nothing in it raises, and every stage is begun once."""
    done = cluster.head.run("bash", "-c", f". ~/.sgan.env; {words}", timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    logs = cluster.head.run("bash", "-c", "cat ~/.cache/sgan/*/sweeps/*/mlflow.log").stdout
    assert "Traceback" not in done.stdout + done.stderr + logs, done.stdout + done.stderr + logs
    ledger = cluster.head.run(str(BIN / "python"), str(ROOT / "sweeps" / "ledger.py"), store).stdout
    faults = ("stage retried", "stage resumed", "stage stopped", "stage discarded", "trial failed")
    assert [line for line in ledger.splitlines() if any(fault in line for fault in faults)] == []
    assert "trained more than once: nothing" in ledger
    assert "trial done" in ledger
    return done.stdout


@pytest.mark.timeout(1800)
def test_hosts_that_share_nothing_but_a_bucket_train_each_stage_once(cluster: Cluster, alone):
    """A real S3 API on the head; each host's mirror is a folder of its own."""
    bucket = Bucket(cluster, cluster.network[S3_HOST])
    try:
        store = "s3://bucket/folder"
        python, tail = BIN / "python", f"--store '{store}' --mlflow sqlite:////tmp/mlflow.db"
        output = without_fault(cluster, store, f"{python} {ROOT / 'sweeps' / 'ablation.py'} {' '.join(SWEEP)} {tail}")
        assert table(output) == table(alone()[1])
        for name in WORKERS:  # both trained, and nothing was left in progress
            claims, work = (
                cluster.network[name].run("bash", "-c", f"ls ~/.cache/sgan/*/{folder}").stdout.split()
                for folder in ("claims", "work")
            )
            assert any(claim.startswith("level-") for claim in claims), name
            assert not work, name
        search = f". ~/.sgan.env; {python} {ROOT / 'sweeps' / 'search.py'} {' '.join(SEARCH)} {tail}"
        killed = subprocess.Popen(cluster.head.command("bash", "-c", search), stdout=subprocess.DEVNULL)
        ledger = (str(python), str(ROOT / "sweeps" / "ledger.py"), store)
        noted = "cat ~/.cache/sgan/*/ledger/*.jsonl"  # the driver's own lines, before they are sent
        before = cluster.head.run("bash", "-c", noted).stdout.count('"trial done"')
        wait_for(
            lambda: cluster.head.run("bash", "-c", noted).stdout.count('"trial done"') > before, 500, "a config's end"
        )
        cluster.head.run("pkill", "-KILL", "-f", "sweeps/search.py")
        killed.wait(60)
        done = cluster.head.run("bash", "-c", search, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert "trained more than once: nothing" in cluster.head.run(*ledger).stdout
        trials = json.loads(cluster.head.run(str(python), "-c", STUDY, store).stdout)
        assert len(trials) >= 3
        assert all(state == "COMPLETE" and values for state, values in trials), trials
    finally:
        bucket.close()


@pytest.mark.timeout(1800)
def test_an_ablation_in_a_bucket_survives_a_round_of_faults(cluster: Cluster, alone):
    bucket = Bucket(cluster, cluster.network[S3_HOST])
    try:
        played = Round(cluster, bucket, 0, 0)
        print(played.play())
        print(played.compare(*alone()))
    finally:
        bucket.close()


def test_an_ablation_survives_the_users_connection_a_power_cut_and_a_pulled_cable(cluster: Cluster, alone):
    seen: dict[str, set[float]] = {}

    def look() -> dict[str, float]:
        found = stages(cluster.store)
        for name, finished in found.items():
            seen.setdefault(name, set()).add(finished)
        return found

    def trains(host: str) -> bool:
        """Whether a level is in progress on a host."""
        look()
        return any(stage.startswith("level-") for stage in held(cluster.store, host))

    script = [str(cluster.config), str(ROOT / "sweeps" / "ablation.py"), "--", *SWEEP]
    user = subprocess.Popen(
        cluster.user("ray", "submit", "--no-config-cache", *script), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_for(lambda: trains(WORKERS[1]), 240, "a level on a worker")
    cluster.network.control.run("kill", "-9", *map(str, cluster.network.control.processes("^ssh ")))
    user.wait(60)  # the connection is gone, and so is what followed the sweep, which goes on
    wait_for(lambda: not cluster.head.processes("^python /root/ablation.py"), 30, "the end of the following")
    assert cluster.head.processes("/bin/python /root/ablation.py")
    cluster.network[WORKERS[1]].cut_power()

    before = len(look())
    wait_for(lambda: len(look()) > before and held(cluster.store, WORKERS[0]), 240, "a stage on the other worker")
    cluster.network[WORKERS[0]].pull_cable()
    pulled = time.time()

    again = subprocess.Popen(  # the same command, which finds the job
        cluster.user("ray", "submit", "--no-config-cache", *script),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: look() and not held(cluster.store, WORKERS[0]), 120, "what the silent host holds being free")
    wait_for(lambda: look() and again.poll() is not None, 500, "the end of the sweep")
    output = again.stdout.read() if again.stdout else ""
    assert again.returncode == 0, output
    assert "This command runs already" in output
    assert "3 nodes, " in output

    reference, said = alone()
    assert table(output) == table(said)
    assert weights(cluster.store) == weights(reference)
    found, wanted = scores(cluster.store), scores(reference)
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        assert values == pytest.approx(wanted[name], rel=1e-9, nan_ok=True)
    assert sorted(name.split("-")[0] for name in look()) == KINDS
    assert {name: len(times) for name, times in seen.items()} == dict.fromkeys(seen, 1)  # none was finished again

    # Ray has given up what the silent host ran: stages that it was about to begin, or whose end nobody heard.
    lost = [event["time"] for event in Store(cluster.store).events() if event["event"] == "stage retried"]
    assert max(lost) < pulled + GIVEN_UP

    cluster.ray("down", "-y", str(cluster.config))
    assert sorted(name.split("-")[0] for name in stages(cluster.store)) == KINDS
    assert list(cluster.store.glob("sweeps/*/report.html"))
