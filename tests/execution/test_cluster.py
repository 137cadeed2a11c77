"""How a command joins a cluster; and the clusters' configurations, by Ray's own schema and autoscaler."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from sgan.checks import ConfigError
from sweeps.execution import cluster, cluster_address, jobs, require_answer
from sweeps.mlflow_view.connection import address_of
from sweeps.planning.options import Options

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "clusters/hosts.yaml")


def test_rays_token_is_its_users_alone(monkeypatch):
    """Whoever reads it runs code as the user."""
    with tempfile.TemporaryDirectory() as folder:
        token = Path(folder, ".ray", "auth_token")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        cluster.keep_token_private(make=False)  # that of a cluster comes from its head
        assert not token.exists()
        before = os.umask(0)
        try:
            cluster.keep_token_private(make=True)
        finally:
            os.umask(before)
        made = token.read_text()
        assert re.fullmatch("[0-9a-f]{64}", made)
        assert token.stat().st_mode & 0o777 == 0o600
        for make in (True, False):
            token.chmod(0o644)
            cluster.keep_token_private(make)
            assert (token.read_text(), token.stat().st_mode & 0o777) == (made, 0o600)
        if os.geteuid() == 0:  # a file of another user
            token.chmod(0o644)
            Path(folder).chmod(0o755)
            os.seteuid(1001)
            try:
                with pytest.raises(ConfigError, match=r"other users can read Ray's token .*chmod 600"):
                    cluster.keep_token_private(make=False)
            finally:
                os.seteuid(0)


@pytest.mark.parametrize(
    ("address", "started", "joined"),
    [
        ("", False, ""),
        ("", True, "192.0.2.2:6379"),
        ("auto", True, "192.0.2.2:6379"),
        ("local", True, ""),
        ("192.0.2.1:6379", True, "192.0.2.1:6379"),
        ("192.0.2.1:6379", False, "192.0.2.1:6379"),
    ],
)
@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_the_address_is_what_ray_documents(tmp_path, monkeypatch, variable, address, started, joined):
    """RAY_ADDRESS first, and then what `ray start` has left."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", address)
    if started:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text("192.0.2.2:6379")
    assert cluster_address() == joined


JOIN = """
import json, os, sys
from sgan.checks import ConfigError
from sweeps.execution import cluster
for environment in json.loads(sys.argv[1]):
    if not os.fork():
        os.environ |= environment
        try:
            cluster.join_cluster()
        except ConfigError as error:
            print(f"refused: {error}", flush=True)
        os._exit(0)
    os.wait()
"""


def join(*environments: dict[str, str]) -> list[str]:
    """What processes of their own, since Ray keeps its folder, say when they join a cluster."""
    command = [sys.executable, "-c", JOIN, json.dumps(environments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    return [line.removeprefix("refused: ") for line in done.stdout.splitlines() if line.startswith("refused: ")]


def test_where_ray_cannot_start_one_line_says_so_with_advice_for_the_fault_of_its_folder(tmp_path):
    """A folder whose name is too long for a socket in it, a file, and one that nobody can make."""
    (tmp_path / "file").touch()
    folders = (tmp_path / (100 * "x"), tmp_path / "file", Path("/proc/nothing"))
    said = join(*({"RAY_ADDRESS": "local", "RAY_TMPDIR": str(folder)} for folder in folders))
    assert all(line.startswith("Ray does not start on this machine (") for line in said)
    assert [line.rpartition("; ")[2] for line in said] == [
        "set RAY_TMPDIR to a folder with a short path, such as /tmp",
        *2 * ["set RAY_TMPDIR to a folder that can be written and has room"],
    ]


def test_a_head_that_hangs_is_told_in_time():
    """It takes connections, as the kernel does for a process that has stopped, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for given in (address, f"ray://{address}"):
            with pytest.raises(ConfigError, match=rf"no Ray cluster answers at the address {given} .*timed out"):
                require_answer(given)


def test_a_command_whose_head_is_gone_says_what_to_do(capsys):
    """The connection to the dashboard breaks while a job's output is followed."""

    class Client:
        async def tail_job_logs(self, job: str):
            yield "level0: loss 0.5\n"
            raise ConnectionResetError("the peer is gone")

    client: Any = Client()
    assert jobs.follow(client, "sgan-1") == jobs.KILLED
    assert capsys.readouterr().out == (
        "level0: loss 0.5\n\nThe head of the cluster no longer answers (ConnectionResetError). If it is gone, start\n"
        "it (`ray up`); then run the same command: it goes on where it was.\n"
    )


@pytest.mark.parametrize("command", ["sweeps/ablation.py", "sweeps/search.py"])
def test_a_cluster_that_nobody_answers_for_is_told_before_torch_and_ray_are_imported(tmp_path, command):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{free.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        for origin, values in {
            "of RAY_ADDRESS": {"RAY_ADDRESS": address},
            "that `ray start` has left here": {"RAY_ADDRESS": "", "RAY_TMPDIR": str(tmp_path)},
        }.items():
            words = [sys.executable, "-X", "importtime", ROOT / command, "--store", tmp_path / "store"]
            process = subprocess.run(words, env=os.environ | values, capture_output=True, text=True, timeout=100)
            *imported, said = process.stderr.splitlines()
            assert (process.returncode, process.stdout) == (2, "")
            assert said.startswith(f"error: no Ray cluster answers at the address {address} {origin} (")
            assert {"torch", "ray"}.isdisjoint(line.rpartition("|")[2].strip() for line in imported)
    assert not (tmp_path / "store").exists()


def read(file: str) -> dict:
    return yaml.safe_load((ROOT / file).read_text())


@pytest.mark.parametrize("file", FILES)
def test_a_configuration_is_one_by_rays_schema(file):
    validate_config(prepare_config(read(file)))


def test_the_clouds_disks_are_encrypted_and_its_ssh_can_be_narrowed_by_the_line_that_shows_how():
    text = (ROOT / "cluster.yaml").read_text()
    config = prepare_config(yaml.safe_load(text.replace("# security_group:", "security_group:")))
    validate_config(config)
    (rule,) = config["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"], rule["IpRanges"]) == (22, 22, [{"CidrIp": "203.0.113.7/32"}])
    for row in config["available_node_types"].values():
        assert [disk["Ebs"]["Encrypted"] for disk in row["node_config"]["BlockDeviceMappings"]] == [True]


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
                {tag["Key"]: tag["Value"] for tag in instance["Tags"]}["ray-cluster-name"],
            )
            for found in boto3.client("ec2", config["provider"]["region"]).describe_instances()["Reservations"]
            for instance in found["Instances"]
        ]
    worker = config["available_node_types"]["spot"]["node_config"]["InstanceType"]
    head = config["available_node_types"]["head"]["node_config"]["InstanceType"]
    assert sorted(launched, key=str) == sorted(
        [
            (head, None, "sgan-head", "sgan"),
            (worker, "spot", "sgan-worker", "sgan"),
            (worker, None, "sgan-worker", "sgan"),
        ],
        key=str,
    )
    assert cluster.to_come(config, nodes=1)[7]["GPU"] == 1  # what the head reads of the workers that may come


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
    assert cluster.to_come(config, nodes=1) == 8 * [{"CPU": 4, "GPU": 1}]
    assert cluster.to_come(config, nodes=6) == 3 * [{"CPU": 4, "GPU": 1}]
    assert cluster.to_come(config, nodes=9) == []
    assert cluster.to_come(prepare_config(read("clusters/hosts.yaml")), nodes=1) == []


def test_a_clusters_settings_are_the_options_defaults(monkeypatch):
    for name in ("SGAN_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
    assert (Options().store, address_of(Options().mlflow)) == ("runs", "")
    monkeypatch.setenv("SGAN_STORE", "/shared/runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert (Options().store, address_of(Options().mlflow)) == ("/shared/runs", "http://127.0.0.1:5000")
    assert address_of(Options(store="mine", mlflow="http://other").mlflow) == "http://other"


@pytest.mark.slow
def test_without_ray_the_slots_are_those_that_ray_has_here():
    code = (
        "from sweeps.execution.cluster import count_slots, join_cluster\n"
        "before = count_slots(None, 1); join_cluster()\n"
        "assert count_slots(None, 1) == before, (count_slots(None, 1), before)"
    )
    values, command = os.environ | {"RAY_ADDRESS": "local"}, [sys.executable, "-c", code]
    done = subprocess.run(command, env=values, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
