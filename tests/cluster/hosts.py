"""A cluster of three hosts on this machine, started by the real `ray up` with the repository's own configuration."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from namespaces import PATH, ROOT, Host, Network

HEAD, WORKERS, STRANGER = "head", ("one", "two"), "stranger"
DATABASE = "postgresql+psycopg://postgres@127.0.0.1/postgres"
BIN = ROOT / ".venv" / "bin"


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
