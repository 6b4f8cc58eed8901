"""A SLURM of its own on this machine, run by whoever runs the tests: munged, slurmctld, two slurmd on the same host."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import pytest

CPUS = 4
"""Of each of the two nodes, however many the machine has."""
MAX_ARRAY = 20
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_DAEMONS = ("munged", "slurmctld", "slurmd")
_START, _STOP = 60, 20
"""Seconds that may pass until the nodes are idle, and until a daemon has ended."""
_PR_SET_PDEATHSIG = 1

_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
TmpFS={folder}/%n/tmp
TaskProlog={folder}/prolog.sh
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
KillWait=20
ReturnToService=2
SlurmdParameters=config_overrides
MaxArraySize={max_array}
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}-{ports[2]} CPUs={cpus}
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=60 DefaultTime=5 State=UP
PartitionName=long Nodes=n1 MaxTime=INFINITE State=UP
"""

_PROLOG = """#!/bin/sh
# More ranks than cores: those that wait have to let others go on.
echo export OMPI_MCA_mpi_yield_when_idle=1
# Both nodes have the host's name, by which Open MPI 4 names its shared memory. The batch step hands its environment on
# to all nodes.
case $SLURM_STEP_ID in
    *[!0-9]* | '') ;;
    *) echo "export OMPI_MCA_btl_vader_backing_directory={folder}/$SLURMD_NODENAME/tmp" ;;
esac
"""


@dataclass
class Cluster:
    """A running SLURM; `environment` is what its commands need."""

    folder: Path
    environment: dict[str, str]
    daemons: list[subprocess.Popen] = field(default_factory=list)

    def run(self, *command: object, cwd: Path | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """A command that finds this SLURM; the finished process with its output as text."""
        return subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
        )

    def asked(self, *command: object, cwd: Path | None = None) -> str:
        """The output of a command that works."""
        done = self.run(*command, cwd=cwd)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def states(self, job: str) -> list[str]:
        """The states of a job, or of all elements of an array."""
        lines = self.asked("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()
        return [state for number, state in map(str.split, lines) if number.partition("_")[0] == job]

    def wait(self, job: str, timeout: float = 240) -> list[str]:
        """The states of a job when it has left the queue, or of all elements of an array."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        until(lambda: all(state in over for state in self.states(job)), timeout, lambda: self.logs())
        return self.states(job)

    def logs(self) -> str:
        """The last that the daemons wrote."""
        parts = []
        for path in sorted(self.folder.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()
            parts.append("\n".join([f"== {path.name}", *lines[-15:]]))
        return "\n".join(parts)

    def stop(self) -> None:
        """End every job and every daemon, and whatever a job left behind."""
        if self.daemons:
            self.run("scancel", "--full", "--user", str(os.getuid()))
            over = monotonic() + _STOP
            while self.run("squeue", "--noheader").stdout.strip() and monotonic() < over:
                sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(_STOP)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self.processes():
            os.kill(process, signal.SIGKILL)
        until(lambda: not self.processes(), _STOP)
        shutil.rmtree(self.folder)

    def processes(self) -> list[int]:
        """The ids of all processes that were started for this SLURM, jobs included: their environment names it."""
        ours = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                variables = path.read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if ours in variables:
                found.append(int(path.parent.name))
        return found


def until(true: Callable[[], bool], timeout: float, why: Callable[[], str] = str) -> None:
    """Wait until something is true; fails after `timeout` seconds."""
    over = monotonic() + timeout
    while not true():
        assert monotonic() < over, f"after {timeout} s: {why()}"
        sleep(0.2)


def start() -> Cluster:
    """Start a SLURM; skips the test where it is not installed."""
    missing = [name for name in (*_DAEMONS, "sbatch", "srun") if shutil.which(name, path=_PATH) is None]
    if missing:
        pytest.skip(f"no SLURM here: {', '.join(missing)} not found (packages slurm-wlm and munge)")
    # Not pytest's own folder: munged wants every folder above its socket to be open to all who look.
    folder = Path(tempfile.mkdtemp(prefix="mpi-resmtl-slurm-"))
    folder.chmod(0o755)
    for name in ("munge", "state", "n1/spool", "n1/tmp", "n2/spool", "n2/tmp"):
        (folder / name).mkdir(parents=True)
    configuration = _CONFIGURATION.format(
        folder=folder,
        host=socket.gethostname().partition(".")[0],
        user=pwd.getpwuid(os.getuid()).pw_name,
        ports=_free_ports(3),
        cpus=CPUS,
        max_array=MAX_ARRAY,
    )
    (folder / "slurm.conf").write_text(configuration)
    (folder / "prolog.sh").write_text(_PROLOG.format(folder=folder))
    (folder / "prolog.sh").chmod(0o755)
    key = folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMPI_", "PMIX_"))}
    cluster = Cluster(folder, inherited | {"PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")})
    try:
        munge = folder / "munge"
        paths = [f"--{name}-file={munge / name}" for name in ("key", "pid", "seed", "log")]
        _daemon(cluster, "munged", "--foreground", "--num-threads=2", f"--socket={munge / 'socket'}", *paths)
        until((munge / "socket").exists, _START, cluster.logs)
        _daemon(cluster, "slurmctld", "-D", "-c", "-f", folder / "slurm.conf")
        for name in ("n1", "n2"):
            _daemon(cluster, "slurmd", "-D", "-f", folder / "slurm.conf", "-N", name)
        idle = ("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T")
        until(lambda: cluster.run(*idle).stdout.splitlines() == ["n1 idle", "n2 idle"], _START, cluster.logs)
    except BaseException:
        cluster.stop()
        raise
    return cluster


def _daemon(cluster: Cluster, name: str, *arguments: object) -> None:
    """Start a daemon that ends when the tests do, however they do."""
    libc = ctypes.CDLL(None)
    number = len(cluster.daemons)
    with open(cluster.folder / f"{name}{number}.log", "w") as log:
        daemon = subprocess.Popen(
            [shutil.which(name, path=_PATH), *map(str, arguments)],
            env=cluster.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
    cluster.daemons.append(daemon)


def _free_ports(number: int) -> list[int]:
    """Ports in a row that nobody listens on."""
    for first in range(20000, 30000, 10):
        sockets = []
        try:
            for port in range(first, first + number):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return list(range(first, first + number))
    raise RuntimeError("no free ports")


@pytest.fixture(name="cluster", scope="session")
def started() -> Iterator[Cluster]:
    """A SLURM with the partitions main (2 nodes of 4 CPUs, at most an hour) and long (one of them, any time)."""
    running = start()
    yield running
    running.stop()
    assert not running.processes()
