"""Hosts on one machine: each has its own network, mounts, processes and sshd, and all see some folders of the machine.

A host is a set of Linux namespaces whose PID 1 is tini. Killing that is a power cut; taking its link down pulls the
cable. The first host of a network is the one that commands are given from: it holds the bridge.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NETWORK = "10.77.0"
PRIVATE = ("/tmp", "/root", "/run", "/dev/shm")
"""Folders that each host has of its own: Ray's session and its sockets lie there."""

# $1 name, $2 folder with the host's settings, then the folders that stay visible under PRIVATE ones.
START = """
set -eu
name=$1 settings=$2; shift 2
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
i=0; for path in "$settings" "$@"; do i=$((i + 1)); mkdir /mnt/$i; mount --bind "$path" /mnt/$i; done
for path in PRIVATE; do mount -t tmpfs tmpfs $path; done
i=0; for path in "$settings" "$@"; do i=$((i + 1)); mkdir -p "$path"; mount --bind /mnt/$i "$path"; done
hostname $name
echo $name >/run/hostname
printf '127.0.0.1 localhost\\n%s %s\\n' "$(cat $settings/address)" $name >/run/hosts
mount --bind /run/hostname /etc/hostname
mount --bind /run/hosts /etc/hosts
mkdir -p /run/sshd ~/.ssh
cp $settings/key.pub ~/.ssh/authorized_keys
cp $settings/key ~/.ssh/key
chmod 600 ~/.ssh/key
touch ~/.bashrc
ip link set lo up
exec tini -- /usr/sbin/sshd -D -e -f $settings/sshd_config
""".replace("PRIVATE", " ".join(PRIVATE))
SSHD = """
HostKey {settings}/host_key
AuthorizedKeysFile /root/.ssh/authorized_keys
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
SetEnv PYTHONPATH={root}
Subsystem sftp internal-sftp
"""


def lacking() -> str:
    """Why this machine cannot make hosts, "" where it can."""
    if os.geteuid() != 0:
        return "only root can make hosts"
    absent = [
        tool for tool in ("sshd", "tini", "ip", "unshare", "nsenter", "rsync") if not shutil.which(tool, path=PATH)
    ]
    if absent:
        return f"no {', '.join(absent)} here (Debian: openssh-server, tini, iproute2, util-linux, rsync)"
    tried = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], check=False, capture_output=True)
    return "" if tried.returncode == 0 else f"namespaces are forbidden here: {tried.stderr.decode().strip()}"


class Host:
    """One host. `pid` is its PID 1 as the machine sees it."""

    def __init__(self, name: str, address: str, folder: Path, visible: Sequence[Path]):
        self.name, self.address, self.settings = name, address, folder / name
        self.settings.mkdir()
        (self.settings / "address").write_text(address)
        for key in ("key", "key.pub"):
            shutil.copyfile(folder / key, self.settings / key)
        make_key(self.settings / "host_key")
        (self.settings / "sshd_config").write_text(SSHD.format(settings=self.settings, root=ROOT))
        self.log = open(self.settings / "log", "w")  # noqa: SIM115 - as long as the host
        spaces = ["--mount", "--uts", "--pid", "--net", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        script = ["bash", "-c", START, "bash", name, str(self.settings), *map(str, visible)]
        die = ["setpriv", "--pdeathsig", "KILL", "--"]  # with the test, however that ends
        self.process = subprocess.Popen(
            [*die, "unshare", *spaces, *script], env={"PATH": PATH, "HOME": "/root"}, stdout=self.log, stderr=self.log
        )
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.pid = int(wait_for(lambda: children.read_text().strip()))
        wait_for(self.listens, what=f"{name} starting")

    def listens(self) -> bool:
        return "Server listening" in (self.settings / "log").read_text()

    def command(self, *words: str, environment: dict[str, str] | None = None) -> list[str]:
        """The command line that runs a command in this host, with a clean environment."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--uts", "--ipc", "--net", "--pid"]
        own = {"HOME": "/root", "PATH": PATH, "USER": "root", "SHELL": "/bin/bash", "LANG": "C.UTF-8"}
        own |= {"PYTHONPATH": str(ROOT)} | (environment or {})  # the environment may be another checkout's
        settings = [f"{name}={value}" for name, value in own.items()]
        return [*enter, "env", "--ignore-environment", "--chdir=/root", *settings, *words]

    def run(self, *words: str, timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in this host."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout, check=False)
        assert not check or done.returncode == 0, f"{self.name}: {words}\n{done.stdout}\n{done.stderr}"
        return done

    def processes(self, word: str) -> list[int]:
        """Processes of this host, by their ids in it, whose command line has a word."""
        return [int(pid) for pid in self.run("pgrep", "-f", word, check=False).stdout.split()]

    def cut_power(self) -> None:
        """Kill everything in the host at once."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(20)
        self.log.close()

    def pull_cable(self) -> None:
        """Take the host off the network; it runs on."""
        self.run("ip", "link", "set", "eth0", "down")

    def plug_in(self) -> None:
        """Bring it back."""
        self.run("ip", "link", "set", "eth0", "up")


class Network:
    """Hosts on one bridge, the first of which holds it."""

    def __init__(self, folder: Path, shared: Path, names: Sequence[str]):
        self.folder = folder
        make_key(folder / "key")
        visible = [shared, ROOT, Path(sys.base_prefix)]
        self.hosts: dict[str, Host] = {}
        try:
            for number, name in enumerate(names, start=1):
                self.hosts[name] = Host(name, f"{NETWORK}.{number}", folder, visible)
            self.control = self.hosts[names[0]]
            self.control.run("ip", "link", "add", "bridge", "type", "bridge")
            self._up(self.control, "bridge")
            for host in list(self.hosts.values())[1:]:
                end = ["peer", "name", "eth0", "netns", str(host.pid)]
                # The machine's own view of processes: the control host's has no other host's.
                network = ["nsenter", "--target", str(self.control.pid), "--net"]
                self._ip(network, "link", "add", host.name, "type", "veth", *end)
                self._ip(network, "link", "set", host.name, "master", "bridge", "up")
                self._up(host, "eth0")
                # Nothing forwards; without a default route Ray does not find its own address.
                host.run("ip", "route", "add", "default", "via", self.control.address)
        except BaseException:
            self.close()
            raise

    def _ip(self, network: list[str], *words: str) -> None:
        subprocess.run([*network, "ip", *words], check=True, timeout=20, env={"PATH": PATH})

    def _up(self, host: Host, link: str) -> None:
        host.run("ip", "address", "add", f"{host.address}/24", "dev", link)
        host.run("ip", "link", "set", link, "up")

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def close(self) -> None:
        """Cut the power of all."""
        for host in self.hosts.values():
            if host.process.poll() is None:
                with suppress(ProcessLookupError):
                    host.cut_power()


def make_key(path: Path) -> None:
    """An ssh key without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=20)


def wait_for(condition, seconds: float = 30.0, what: str = "that"):
    """What a condition returns once it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.1)
    return value
