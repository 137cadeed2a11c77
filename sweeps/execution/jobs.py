"""On a cluster, a command runs as a Ray job, so that it outlives the terminal in which it was started.

The command submits the job and prints its output. The same command, started again, follows the running job. A job's id
is the key of the command and the number of the attempt, since Ray accepts an id only once.
"""

import asyncio
import dataclasses
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from sgan.addresses import is_bucket
from sgan.checks import ConfigError, content_key
from sgan.command_line import INTERRUPTED
from sweeps.execution import cluster_address
from sweeps.planning.manifest import command
from sweeps.planning.options import Options

INSIDE = "SGAN_JOB"  # Set in the environment of a job
KILLED = 137  # Exit status of a command that was killed
# Environment of Ray's process that runs the job; the seconds are for checkpoints, and for the last pass to MLflow.
SUPERVISOR = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "120"}


def run(main: Callable[..., int], options: Options) -> int:
    """Run `main(options)` and return its exit status: here, or on a cluster as a job. A running one is followed.

    Ctrl-C or the end of the terminal ends only the following. ConfigError if the cluster does not answer."""
    cluster = cluster_address()
    if os.environ.get(INSIDE) or options.dry_run or not cluster:
        return main(options)
    logging.disable(logging.INFO)  # Ray's client would log its connections
    try:
        client = JobSubmissionClient(cluster)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"the dashboard of the Ray cluster at {cluster} accepts no jobs ({reason}); start the "
            "cluster with its dashboard (`ray up`), or set RAY_ADDRESS=local to use this machine alone"
        ) from error
    store = options.store if is_bucket(options.store) else os.path.abspath(options.store)
    same = dataclasses.replace(options, store=store, data=options.data and options.data.absolute())
    key = f"sgan-{content_key(repr(same))}-"  # the same from any folder
    jobs = {job.submission_id or "": job.status for job in client.list_jobs()}
    mine = [job for job in jobs if job.startswith(key)]
    running = [job for job in mine if jobs[job] in (JobStatus.PENDING, JobStatus.RUNNING)]
    attempt = 1 + max((int(job.rpartition("-")[2]) for job in mine), default=0)
    job = running[0] if running else f"{key}{attempt}"
    if running or not _submit(client, job):
        print("This command runs already; it is followed from its beginning.", flush=True)
    return follow(client, job)


def _submit(client: JobSubmissionClient, job: str) -> bool:
    """Submit this process's command as a job; returns False if another terminal was faster.

    Its environment is in a file that only this user can read and that deletes itself: Ray shows the entrypoints and
    environments of jobs, and these may hold passwords."""
    handle, file = tempfile.mkstemp(prefix="sgan-", suffix=".sh")
    names = [name for name in os.environ if name.isidentifier() and not name.startswith("RAY_")]
    words = [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]
    lines = [f"rm -f {file}", f"cd {shlex.quote(os.getcwd())}", f"export {INSIDE}=1"]
    lines += [f"export {name}={shlex.quote(os.environ[name])}" for name in names]
    with open(handle, "w") as script_file:
        script_file.write("\n".join([*lines, f"exec {shlex.join(words)}", ""]))
    entry = f"[ -r {file} ] || echo 'Run the command on the head of its cluster (ray attach)'; . {file}"
    about = {"command": command()}
    try:
        client.submit_job(entrypoint=entry, submission_id=job, runtime_env={"env_vars": SUPERVISOR}, metadata=about)
        return True
    except (RuntimeError, OSError) as error:
        Path(file).unlink(missing_ok=True)
        if "already exists" not in str(error):
            raise
        return False


def follow(client: JobSubmissionClient, job: str) -> int:
    """Print the output of a job until it ends; returns its exit status."""

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(tail())
        info = client.get_job_info(job)
    except KeyboardInterrupt:
        print(f"\nThe job goes on without this terminal. The same command follows it; `ray job stop {job}` stops it.")
        return INTERRUPTED
    except (RuntimeError, OSError) as error:
        print(f"\nThe head of the cluster no longer answers ({type(error).__name__}). If it is gone, start")
        print("it (`ray up`); then run the same command: it goes on where it was.")
        return KILLED
    if info.status == JobStatus.STOPPED:
        return INTERRUPTED
    if info.driver_exit_code is None or info.driver_exit_code < 0:
        print("The command was killed, or its machine went down; run it again, and it goes on where it was.")
        return KILLED
    return info.driver_exit_code
