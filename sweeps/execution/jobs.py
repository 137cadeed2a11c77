"""Where there is a cluster, a command outlives the terminal that it was given in: it runs as a Ray job.

The command line submits the job and follows what it prints. Given again, it follows the job that runs. A job's id is
the key of the command and the number of its attempt, since Ray refuses an id for ever.
"""

import asyncio
import dataclasses
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from sgan.checks import ConfigError, content_key, require
from sweeps.execution.cluster import cluster_address
from sweeps.planning.options import INTERRUPTED, Options

INSIDE = "SGAN_JOB"
"""Set in the environment of a job."""
PREFIX = "sgan-"
KILLED = 137
"""Exit status of a command that was killed."""
ENVIRONMENT = {
    INSIDE: "1",
    "PYTHONUNBUFFERED": "1",
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    "RAY_JOB_STOP_WAIT_TIME_S": "120",  # for checkpoints, and for the last pass to MLflow
}
RUNNING = (JobStatus.PENDING, JobStatus.RUNNING)


def run(main: Callable[[], int], options: Options, script: str) -> int:
    """Run a command here; on a cluster run its job, or follow the one that runs, and return its exit status.

    Ctrl-C, or the end of the terminal, ends the following alone.

    Raises:
        ConfigError: there is nothing to follow or to stop, or the cluster does not answer.
    """
    cluster = cluster_address()
    require(
        bool(cluster) or not (options.attach or options.stop),
        "--attach and --stop are for a cluster, and none runs here (`ray up`, then `ray attach`); without one the "
        "command runs in its own terminal, where Ctrl-C stops it",
    )
    if os.environ.get(INSIDE) or options.dry_run or not cluster:
        return main()
    try:
        client = JobSubmissionClient(cluster)
        jobs = [job for job in client.list_jobs() if (job.submission_id or "").startswith(PREFIX)]
    except (ConnectionError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"the dashboard of the Ray cluster at {cluster} does not answer ({reason}); start the cluster (`ray up`), "
            "or set RAY_ADDRESS=local to use this machine alone"
        ) from error
    key = f"{PREFIX}{_key(options, script)}"
    mine = [job for job in jobs if str(job.submission_id).startswith(key)]
    running = [job for job in (jobs if options.attach else mine) if job.status in RUNNING]
    if options.attach:
        require(bool(running), "no command runs on this cluster")
        commands = "".join(f"\n  {job.entrypoint}" for job in running)
        require(len(running) == 1, f"several commands run on this cluster: give one of them again{commands}")
    if options.stop:
        require(bool(running), "this command does not run here; --attach --stop stops the one that does")
        client.stop_job(_id(running[0]))
    elif running and not options.attach:
        print("This command runs already; it is followed from its beginning.", flush=True)
    if running:
        return follow(client, _id(running[0]))
    command = shlex.join([sys.executable, str(Path(sys.argv[0]).absolute()), *sys.argv[1:]])
    environment = ENVIRONMENT | {name: value for name, value in os.environ.items() if name.startswith("SGAN_")}
    submission = client.submit_job(
        entrypoint=f"cd {shlex.quote(os.getcwd())} && exec {command}",
        submission_id=f"{key}-{len(mine) + 1}",
        runtime_env={"env_vars": environment},
    )
    return follow(client, submission)


def _key(options: Options, script: str) -> str:
    """The key of a command: its options from whatever folder it was given in."""
    store = options.store if "://" in options.store else str(Path(options.store).absolute())
    data = options.data.absolute() if options.data else None
    return content_key([script, repr(dataclasses.replace(options, stop=False, store=store, data=data))])


def _id(job: JobDetails) -> str:
    assert job.submission_id
    return job.submission_id


def follow(client: JobSubmissionClient, job: str) -> int:
    """Print what a job prints until it ends; returns its exit status."""

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(tail())
    except KeyboardInterrupt:
        print("\nIt goes on without this terminal. The same command follows it again, with --stop it stops it.")
        return INTERRUPTED
    info = client.get_job_info(job)
    if info.status == JobStatus.STOPPED:
        return INTERRUPTED
    if info.driver_exit_code is None or info.driver_exit_code < 0:
        print("The command was killed, or its machine went down; give it again, and it goes on where it was.")
        return KILLED
    return info.driver_exit_code
