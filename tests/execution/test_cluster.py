"""What runs where there is a cluster: compared with Ray's own rules, schema and autoscaler; nothing is started."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import _raylet
from ray._private import ray_constants, services
from ray.autoscaler._private.util import prepare_config, validate_config
from waiting import wait_for

from sweeps.execution import alone, cluster
from sweeps.planning.options import Options

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "clusters/hosts.yaml")


@pytest.mark.parametrize("address", [None, "", "local", "auto", "192.0.2.1:6379"])
@pytest.mark.parametrize("started", [False, True])
def test_a_cluster_is_where_ray_would_join_one(tmp_path, monkeypatch, address, started):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    if started:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text("192.0.2.2:6379")
    try:
        joined = services.canonicalize_bootstrap_address(None)  # pyright: ignore[reportArgumentType]
    except ConnectionError:  # "auto" finds several, of tests that run beside this one
        joined = address
    assert cluster.on_cluster() == (joined is not None or address == "auto")


def test_where_ray_cannot_start_one_line_says_so(tmp_path):
    """A folder whose name is too long for a socket in it; in a process of its own, since Ray keeps its folder."""
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(tmp_path / (100 * "x"))}
    command = [sys.executable, "-c", "from sweeps import cluster; cluster.connect()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("sgan.checks.ConfigError: Ray does not start on this machine (")
    assert "AF_UNIX path" in last


def read(file: str) -> dict:
    return yaml.safe_load((ROOT / file).read_text())


@pytest.mark.parametrize("file", FILES)
def test_a_configuration_is_one_by_rays_schema(file):
    validate_config(prepare_config(read(file)))


@pytest.mark.parametrize("file", FILES)
def test_what_is_named_is_there_and_nothing_listens_to_all(file):
    text = (ROOT / file).read_text()
    scripts = set(re.findall(r"clusters/\w+\.sh", text))
    assert scripts
    for script in [ROOT / name for name in scripts]:
        assert script.stat().st_mode & 0o111, f"{script} is no executable"
    for path in [ROOT / file, *(ROOT / "clusters").glob("*.sh")]:
        assert "0.0.0.0" not in path.read_text()
    assert "~/.ray/auth_token" in read(file)["cluster_synced_files"]


def test_the_clouds_workers_are_spot_first_and_on_demand_where_that_fails():
    config = prepare_config(read("cluster.yaml"))
    types = config["available_node_types"]
    head, spot, demand = (types[name] for name in ("head", "spot", "on-demand"))
    assert config["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot["node_config"] == demand["node_config"]
    assert spot["priority"] > demand["priority"]
    assert {row["min_workers"] for row in types.values()} == {0}
    assert config["idle_timeout_minutes"] <= 15


def test_rays_own_provider_launches_what_is_meant(tmp_path, monkeypatch):
    """Ray's AWS provider against EC2 and IAM in simulation, which check every parameter."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.commands import _bootstrap_config
    from ray.autoscaler._private.providers import _get_node_provider

    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".ssh").mkdir()
    with mock_aws():
        iam, config = boto3.client("iam"), read("cluster.yaml")
        for role in ("sgan-head", "sgan-worker"):
            iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
            iam.create_instance_profile(InstanceProfileName=role)
            iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
        config = _bootstrap_config(config, no_config_cache=True)
        provider = _get_node_provider(config["provider"], config["cluster_name"])
        for name, row in config["available_node_types"].items():
            tags = {"ray-node-type": "worker", "ray-user-node-type": name, "ray-node-name": name}
            provider.create_node(row["node_config"], tags, 1)
        launched = [
            (
                instance["InstanceType"],
                instance.get("InstanceLifecycle"),
                instance["IamInstanceProfile"]["Arn"].split("/")[1],
            )
            for found in boto3.client("ec2", config["provider"]["region"]).describe_instances()["Reservations"]
            for instance in found["Instances"]
        ]
    worker = config["available_node_types"]["spot"]["node_config"]["InstanceType"]
    head = config["available_node_types"]["head"]["node_config"]["InstanceType"]
    assert sorted(launched, key=str) == sorted(
        [(head, None, "sgan-head"), (worker, "spot", "sgan-worker"), (worker, None, "sgan-worker")], key=str
    )
    assert cluster.to_come(config, there=1)[7]["GPU"] == 1  # what the head reads of the workers that may come


def test_the_cloud_gets_the_code_alone():
    config = read("cluster.yaml")
    sources = list(config["file_mounts"].values())
    for source in sources:
        assert (ROOT / source).exists()
    assert {"sgan", "sweeps", "clusters", "Makefile", "pyproject.toml", "requirements.lock", "uv.txt"} <= set(sources)
    assert not {".", ".git", ".venv", "data", "runs", "tests"} & set(sources)
    assert {".git", ".venv", "data", "runs"} <= set(config["rsync_exclude"])
    # `ray submit` puts the script beside these folders: one named as a package would hide it.
    assert not {Path(target).parts[1] for target in config["file_mounts"]} & {"sgan", "sweeps"}


def test_the_scheduler_counts_the_workers_that_may_come():
    config = read("cluster.yaml")
    for row in config["available_node_types"].values():
        row["resources"] = {"CPU": 4, "GPU": 1} | row["resources"]  # as Ray's AWS provider fills them in
    assert cluster.to_come(config, there=1) == 8 * [{"CPU": 4, "GPU": 1}]
    assert cluster.to_come(config, there=6) == 3 * [{"CPU": 4, "GPU": 1}]
    assert cluster.to_come(config, there=9) == []
    assert cluster.to_come(prepare_config(read("clusters/hosts.yaml")), there=1) == []


def test_a_clusters_settings_are_the_options_defaults(monkeypatch):
    for name in ("SGAN_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
    assert (Options().store, Options().mlflow) == ("runs", None)
    monkeypatch.setenv("SGAN_STORE", "/shared/runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert (Options().store, Options().mlflow) == ("/shared/runs", "http://127.0.0.1:5000")
    assert Options(store="mine", mlflow="http://other").mlflow == "http://other"


def on_local_ray(code: str) -> str:
    """What code prints in a process of its own that starts Ray for itself."""
    environment = os.environ | {"RAY_ADDRESS": "local"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_ray_the_slots_are_those_that_ray_would_have_here():
    """And what Ray starts for one process are its stores and agents alone."""
    code = (
        "import os, subprocess; from sweeps import cluster\n"
        "before = cluster.slots(None, 1); cluster.connect()\n"
        "assert cluster.slots(None, 1) == before, (cluster.slots(None, 1), before)\n"
        "print(subprocess.check_output(['ps', '-o', 'args=', '--ppid', str(os.getpid())], text=True))"
    )
    said = on_local_ray(code)
    assert "raylet" in said
    assert not re.findall(r"monitor\.py|dashboard\.py", said)


def test_what_stands_for_an_agent_uses_rays_names():
    names: Any = _raylet
    ports = {names.METRICS_AGENT_PORT_NAME, names.METRICS_EXPORT_PORT_NAME, names.DASHBOARD_AGENT_LISTEN_PORT_NAME}
    assert ports == alone.NO_DASHBOARD.keys()
    assert names.RUNTIME_ENV_AGENT_PORT_NAME == "runtime_env_agent_port"
    agents = (ray_constants.PROCESS_TYPE_DASHBOARD_AGENT, ray_constants.PROCESS_TYPE_RUNTIME_ENV_AGENT)
    assert agents == (alone.DASHBOARD, alone.ENVIRONMENTS)


def test_what_stands_for_an_agent_ends_where_ray_has_ended_before_it(tmp_path):
    command = [sys.executable, "-I", "-S", alone.__file__, alone.DASHBOARD, "agent.py", f"--session-dir={tmp_path}"]
    environment = os.environ | {"RAY_RAYLET_PID": "0"}
    done = subprocess.run([*command, "--node-id=x"], env=environment, check=False, timeout=10)
    assert done.returncode == 0
    assert (tmp_path / "metrics_agent_port_x").read_text() == "-1"


def test_a_node_without_agents_makes_environments_all_the_same_and_leaves_no_process():
    code = (
        "import os, subprocess, sys, ray; from sweeps import cluster\n"
        "cluster.connect()\n"
        "folder = ray._private.worker._global_node.get_session_dir_path()\n"
        "shown = '^[^ ]*python[^ ]* -I -S .*/alone.py .*' + folder\n"
        "agents = subprocess.check_output(['pgrep', '-f', shown], text=True)\n"
        "asked = ray.remote(runtime_env={'env_vars': {'ASKED': 'yes'}})(lambda: os.environ.get('ASKED'))\n"
        "plain = ray.remote(lambda: os.environ.get('ASKED'))\n"
        "print(ray.get([asked.remote(), plain.remote()]), *agents.split())"
    )
    said = on_local_ray(code)
    values, _, agents = said.strip().partition("] ")
    assert values == "['yes', None"
    assert len(agents.split()) == 2
    wait_for(lambda: not any(Path(f"/proc/{agent}").exists() for agent in agents.split()), 30)
