"""docs/cluster-on-premise.yaml for real: `ray up`, `ray submit`, `ray down` over SSH between three machines.

    sudo .venv/bin/python -m tests.cluster.over_ssh       (Linux; openssh-server, rsync, iproute2, util-linux)

The machines are namespaces of this one: a laptop, a head and a worker, each with processes and addresses of
its own, and with a home folder and a /tmp in which it sees what is there and keeps what it writes to itself.
So `ray stop`, which ends every Ray process it can see, sees those of its own machine only, ports are free,
and all of it, keys and processes, is gone when the first process ends. What differs from the file:
addresses, user and key; the environment is the caller's instead of a new one; the head takes no tasks, so
that all is computed on the worker.

Three minutes on two cores. The last line printed is JSON: the seconds of each step, what `lethe status` says,
who computed.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from orchestrator.store import Store

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ROOT / "docs" / "cluster-on-premise.yaml"
NEEDED = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "ip": "iproute2",
    "unshare": "util-linux",
    "mount": "mount",
}
PATH = os.pathsep.join(
    (os.environ.get("PATH", ""), "/usr/sbin", "/sbin")
)  # sshd and ip are not on everyone's
HOME = pwd.getpwuid(os.geteuid()).pw_dir  # where ssh looks for what is below ~, whatever $HOME says
DISK = Path("/mnt")  # where the file system of all machines is mounted, for them alone
RESULTS = str(DISK / "shared" / "results")
ADDRESSES = {"laptop": "10.77.0.1", "head": "10.77.0.2", "worker": "10.77.0.3"}
SSHD = """
ListenAddress {address}
HostKey {keys}/host
AuthorizedKeysFile {keys}/user.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
PidFile none
Subsystem sftp internal-sftp
SetEnv PYTHONPATH={home}/lethe/code
ForceCommand cd "$HOME" && exec bash -c "$SSH_ORIGINAL_COMMAND"
"""


def missing() -> str | None:
    """Why this cannot run here, or None."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "namespaces need Linux and root"
    packages = [package for name, package in NEEDED.items() if shutil.which(name, path=PATH) is None]
    if packages:
        return f"not installed: apt-get install {' '.join(packages)}"
    allowed = subprocess.run(["unshare", "--mount", "--pid", "--net", "--fork", "true"], check=False)
    return "this machine allows no namespaces" if allowed.returncode else None


def outside() -> int:
    """Run `inside` as the laptop. All processes of all machines end with its first one."""
    if (reason := missing()) is not None:
        sys.stderr.write(f"{reason}\n")
        return 2
    # bash is the first process: it takes in orphans, and `ray stop` would wait for those nobody takes in.
    again = f"'{sys.executable}' -m tests.cluster.over_ssh inside; exit $?"
    command = ["unshare", "--mount", "--pid", "--net", "--fork", "--mount-proc", "--kill-child"]
    environment = os.environ | {
        "PATH": PATH,
        "HOME": HOME,
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return subprocess.run([*command, "bash", "-c", again], cwd=ROOT, env=environment, check=False).returncode


def inside() -> None:
    make_disk()
    with machines():
        own_folders("laptop")
        config, steps = write_config(), {}
        for name, command in commands(config).items():
            start = time.monotonic()
            call(*command)
            steps[name] = round(time.monotonic() - start, 1)
        start = time.monotonic()
        wait_for(lambda: not ray_processes(), "Ray's processes to end", 120)
        steps["until no Ray process is left"] = round(time.monotonic() - start, 1)
        status = call(sys.executable, "-m", "orchestrator", "status", "--results", RESULTS, "--json")
        hosts = sorted(set(Store.open(RESULTS).runs(("host",)).column("host").to_pylist()))
    say(json.dumps({"steps_s": steps, "status": json.loads(status), "computed_on": hosts}))


def make_disk() -> None:
    run("mount", "-t", "tmpfs", "tmpfs", str(DISK))
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    for folder in ("/run/sshd", f"{DISK}/shared", f"{DISK}/keys", *(f"{DISK}/{name}" for name in ADDRESSES)):
        Path(folder).mkdir(parents=True)
    for name in ("host", "user"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{DISK}/keys/{name}")


def own_folders(name: str) -> None:
    """Let what a machine writes to its home folder and to /tmp go to its own part of the disk."""
    for part, folder in (("home", HOME), ("tmp", "/tmp")):
        upper, work = DISK / name / part, DISK / name / f"{part}-work"
        for made in (upper, work):
            made.mkdir(parents=True)
        layers = f"lowerdir={folder},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "-o", layers, "overlay", folder)


@contextmanager
def machines() -> Iterator[None]:
    """The head and the worker, each with an SSH server, and a network between them and the laptop."""
    run("ip", "link", "add", "switch", "type", "bridge")
    run("ip", "address", "add", f"{ADDRESSES['laptop']}/24", "dev", "switch")
    for device in ("lo", "switch"):
        run("ip", "link", "set", device, "up")
    started = [machine(name) for name in ("head", "worker")]
    try:
        for name in ("head", "worker"):
            wait_for(lambda name=name: answers(ADDRESSES[name], 22), f"the SSH server of the {name}", 20)
        yield
    finally:
        for process in started:
            process.kill()


def machine(name: str) -> subprocess.Popen[bytes]:
    address = ADDRESSES[name]
    run("ip", "netns", "add", name)
    run("ip", "link", "add", f"to-{name}", "master", "switch", "type", "veth", "peer", "eth0", "netns", name)
    run("ip", "link", "set", f"to-{name}", "up")
    for device in ("lo", "eth0"):
        run("ip", "-n", name, "link", "set", device, "up")
    run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
    # Ray finds its own address by the route to the world, which there need not be any world behind.
    run("ip", "-n", name, "route", "add", "default", "via", ADDRESSES["laptop"])
    server = DISK / name / "sshd_config"
    server.write_text(SSHD.format(address=address, keys=DISK / "keys", home=HOME))
    server_process = f"{shutil.which('sshd')} -D -e -f {server}"  # sshd wants its whole path
    boot = f"'{sys.executable}' -m tests.cluster.over_ssh boot {name} && {server_process}; exit $?"
    isolated = [
        "unshare",
        "--mount",
        "--uts",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "bash",
        "-c",
        boot,
    ]
    return subprocess.Popen(["ip", "netns", "exec", name, *isolated], cwd=ROOT)


def write_config() -> str:
    """The documented configuration with these machines in it."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["provider"] |= {"head_ip": ADDRESSES["head"], "worker_ips": [ADDRESSES["worker"]]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(DISK / "keys" / "user")}
    make, install, path = config["setup_commands"]
    if "venv" not in make or "pip install" not in install:
        raise ValueError(f"{CONFIG}: the first two setup_commands are expected to make the environment")
    config["setup_commands"] = [f"ln -sfn '{sys.prefix}' ~/lethe/env", path]
    stop, start = config["head_start_ray_commands"]
    config["head_start_ray_commands"] = [stop, start.replace("--head", "--head --num-cpus=0")]
    written = DISK / "laptop" / "cluster.yaml"
    written.write_text(yaml.safe_dump(config))
    return str(written)


def commands(config: str) -> dict[str, list[str]]:
    """What the documentation tells to type, step by step."""
    ray = f"{sys.prefix}/bin/ray"
    script = ["orchestrator/__main__.py", "--", "run", "lethe/code/grids/digits.yaml", "--limit", "3"]
    where = ["--address", "auto", "--data", "lethe/data", "--results", RESULTS]
    return {
        "ray get-auth-token": [ray, "get-auth-token", "--generate"],
        "ray up": [ray, "up", "--yes", config],
        "ray submit": [ray, "submit", config, *script, *where],
        "ray down": [ray, "down", "--yes", config],
    }


def call(*command: str) -> str:
    """Run a command as somebody at the laptop would; its output, which is also shown."""
    say(f"$ {shlex.join(command)}")
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    say(done.stdout + done.stderr)
    done.check_returncode()
    return done.stdout


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True


def ray_processes() -> list[str]:
    """Command lines of the main Ray processes of all machines: the laptop sees into the others."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # a process that has ended
            lines.append(file.read_bytes().replace(b"\0", b" ").decode())
    return [line for line in lines if "raylet" in line or "gcs_server" in line]


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.2)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["boot", name]:
            own_folders(name)
            socket.sethostname(name)
        case ["inside"]:
            inside()
        case _:
            sys.exit(outside())
