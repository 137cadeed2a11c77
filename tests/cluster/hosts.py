"""A cluster of three hosts on this machine, started by the real `ray up` with the repository's own configuration."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from namespaces import PATH, ROOT, Host, Network, wait_for

HEAD, WORKERS, STRANGER, S3_HOST = "head", ("one", "two"), "stranger", "bucket"
S3 = 9998
"""The port of the S3 API."""
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

    def up(self) -> None:
        """`ray up`, and wait for all nodes."""
        self.ray("up", "-y", "--no-config-cache", str(self.config))
        wait_for(lambda: self.alive() == 1 + len(WORKERS), 90, "three nodes")

    def alive(self) -> int:
        """Nodes that Ray has."""
        return int(
            self.on_head("ray status | sed -n '/^Active/,/^Pending/s/^ *\\([0-9]*\\) local.*/\\1/p'").strip() or 0
        )


@contextmanager
def start_cluster(folder: Path, shared: Path) -> Iterator[Cluster]:
    """A head and two workers, and hosts that Ray does not know: the user's, a stranger's and one for the S3 API.
    `folder` is this process's own, all see `shared`."""
    network = Network(folder, shared, ["control", HEAD, *WORKERS, STRANGER, S3_HOST])
    try:
        text = (ROOT / "clusters" / "hosts.yaml").read_text()
        for example, here in {
            "192.168.1.10": network[HEAD].address,
            "[192.168.1.11, 192.168.1.12]": f"[{', '.join(network[name].address for name in WORKERS)}]",
            "researcher": "root",
            "~/.ssh/sgan_cluster": "~/.ssh/key",
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
        made.up()
        yield made
    finally:
        network.close()


class Bucket:
    """A real S3 API (moto's) on a host, which the nodes of a cluster reach with their own settings."""

    def __init__(self, cluster: Cluster, host: Host):
        self.host, self.faults = host, cluster.config.with_name("faults.json")
        self.misbehave()
        serve = [str(BIN / "python"), str(ROOT / "tests" / "s3.py"), host.address, str(S3), str(self.faults)]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(host.command(*serve), stdout=null, stderr=null)
        self.url = f"http://{host.address}:{S3}"
        keys = "[default]\naws_access_key_id = test\naws_secret_access_key = test\nregion = us-east-1\n"
        for name in (HEAD, *WORKERS):
            write = f"mkdir -p ~/.aws && printf '{keys}' > ~/.aws/credentials"
            place = f"printf '[default]\nendpoint_url = {self.url}\n' > ~/.aws/config"
            cluster.network[name].run("bash", "-c", f"{write} && {place}")
        cluster.head.run(str(BIN / "python"), "-c", MAKE_BUCKET, self.url, timeout=60)

    def misbehave(self, share: float = 0.0, delay: float = 0.0) -> None:
        """Answer a share of all requests with 503, and each after a delay in seconds."""
        self.faults.write_text(json.dumps({"share": share, "delay": delay}))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


MAKE_BUCKET = """
import s3fs, sys, time
for _ in range(100):
    try:
        s3fs.S3FileSystem(endpoint_url=sys.argv[1]).mkdir("bucket")
        break
    except Exception:
        time.sleep(0.2)
"""


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
