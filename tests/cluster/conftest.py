"""A cluster of three hosts on this machine, started by the real `ray up` with the repository's own configuration."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from namespaces import PATH, ROOT, Host, Network, lacking, wait_for

HEAD, WORKERS, STRANGER = "head", ("one", "two"), "stranger"
DATABASE = "postgresql+psycopg://postgres@127.0.0.1/postgres"
BIN = ROOT / ".venv" / "bin"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = lacking()
    for item in items:
        if reason and item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.skip(reason=reason))


@dataclass
class Cluster:
    """Hosts: `control` is the user's machine, which the cluster is started from; `stranger` is on the same network."""

    network: Network
    config: Path
    store: Path
    postgres: bool

    @property
    def head(self) -> Host:
        return self.network[HEAD]

    def user(self, *words: str) -> list[str]:
        """The command line of a command on the user's machine."""
        return self.network.control.command(*words, environment={"PATH": f"{BIN}:{PATH}", "TERM": "xterm"})

    def ray(self, *words: str, timeout: float = 100) -> str:
        """Run `ray` on the user's machine."""
        done = subprocess.run(self.user("ray", *words), capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def on_head(self, command: str, timeout: float = 60) -> str:
        """What a shell on the head prints, with the cluster's settings."""
        return self.head.run("bash", "-c", f". ~/.sgan.env; {command}", timeout=timeout, check=False).stdout

    def alive(self) -> int:
        """Nodes that Ray has."""
        return int(
            self.on_head("ray status | sed -n '/^Active/,/^Pending/s/^ *\\([0-9]*\\) local.*/\\1/p'").strip() or 0
        )


def start_postgres(host: Host) -> bool:
    """Start PostgreSQL on a host, as Debian configures it: it listens on loopback. False where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        return False
    data, postgres = "/tmp/postgres", ("runuser", "-u", "postgres", "--")
    host.run("install", "-d", "-o", "postgres", data)
    host.run(*postgres, str(found[-1]), "-D", data, "--auth=trust", "--no-sync")
    control = str(found[-1].with_name("pg_ctl"))
    host.run(
        *postgres,
        control,
        "-D",
        data,
        "-w",
        "-l",
        f"{data}/log",
        "-o",
        f"-k {data} -c listen_addresses=localhost",
        "start",
    )
    return True


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Three hosts, a fourth that commands are given on, and a stranger."""
    folder, shared = tmp_path_factory.mktemp("hosts"), tmp_path_factory.mktemp("shared")
    network = Network(folder, shared, ["control", HEAD, *WORKERS, STRANGER])
    try:
        text = (ROOT / "clusters" / "hosts.yaml").read_text()
        for example, here in {
            "192.168.1.10": network[HEAD].address,
            "[192.168.1.11, 192.168.1.12]": f"[{', '.join(network[name].address for name in WORKERS)}]",
            "researcher": "root",
            "~/.ssh/id_ed25519": "~/.ssh/key",
            "/shared/runs": str(shared / "runs"),
            "/shared/sgan-sweeps": str(ROOT),
        }.items():
            assert example in text
            text = text.replace(example, here)
        postgres = start_postgres(network[HEAD])
        if postgres:
            text = text.replace("SGAN_STORE=", f"SGAN_MLFLOW_DATABASE={DATABASE} SGAN_STORE=")
        config = shared / "hosts.yaml"
        config.write_text(text)
        made = Cluster(network, config, shared / "runs", postgres)
        made.ray("up", "-y", "--no-config-cache", str(config))
        wait_for(lambda: made.alive() == 3, 60, "three nodes")
        yield made
    finally:
        network.close()
