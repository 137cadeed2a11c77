"""Where there is a cluster, a command outlives the terminal that it was given in: it runs as a Ray job.

The command line submits the job and follows its output. Given again, it follows the job that runs. A job's id is the
key of the command and the number of its attempt, since Ray takes an id once.
"""

import asyncio
import dataclasses
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Callable

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
# Environment of the process of Ray that runs the job; the seconds are for checkpoints, and for the last pass to MLflow.
SUPERVISOR = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "120"}


def run(main: Callable[[], int], options: Options, script: str) -> int:
    """Run a command here; on a cluster run its job, or follow the one that runs, and return its exit status.

    Ctrl-C, or the end of the terminal, ends the following alone. ConfigError where the cluster does not answer."""
    cluster = cluster_address()
    if os.environ.get(INSIDE) or options.dry_run or not cluster:
        return main()
    logging.disable(logging.INFO)  # Ray's client would tell of its connections
    try:
        client = JobSubmissionClient(cluster)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"the dashboard of the Ray cluster at {cluster} does not take commands ({reason}); start the "
            "cluster with it (`ray up`), or set RAY_ADDRESS=local to use this machine alone"
        ) from error
    store = options.store if is_bucket(options.store) else os.path.abspath(options.store)
    same = dataclasses.replace(options, store=store, data=options.data and options.data.absolute())
    key = f"sgan-{content_key([script, repr(same)])}-"  # from whatever folder it was given in
    jobs = {job.submission_id or "": job.status for job in client.list_jobs()}
    mine = [job for job in jobs if job.startswith(key)]
    running = [job for job in mine if jobs[job] in (JobStatus.PENDING, JobStatus.RUNNING)]
    attempt = 1 + max((int(job.rpartition("-")[2]) for job in mine), default=0)
    job = running[0] if running else f"{key}{attempt}"
    if running or not _submit(client, job, script):
        print("This command runs already; it is followed from its beginning.", flush=True)
    return follow(client, job)


def _submit(client: JobSubmissionClient, job: str, script: str) -> bool:
    """Submit this process's command as a job; false where another terminal was faster.

    Its environment is in a file that this user alone can read and that removes itself: Ray shows the entrypoints and
    environments of jobs, and these may hold passwords."""
    handle, file = tempfile.mkstemp(prefix="sgan-", suffix=".sh")
    names = [name for name in os.environ if name.isidentifier() and not name.startswith("RAY_")]
    words = [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]
    lines = [f"rm -f {file}", f"cd {shlex.quote(os.getcwd())}", f"export {INSIDE}=1"]
    lines += [f"export {name}={shlex.quote(os.environ[name])}" for name in names]
    with open(handle, "w") as script_file:
        script_file.write("\n".join([*lines, f"exec {shlex.join(words)}", ""]))
    entry = f"[ -r {file} ] || echo 'A command is given on the head of its cluster (ray attach)'; . {file}"
    about = {"command": command(script)}
    try:
        client.submit_job(entrypoint=entry, submission_id=job, runtime_env={"env_vars": SUPERVISOR}, metadata=about)
        return True
    except RuntimeError as error:
        os.unlink(file)
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
        print(f"\nIt goes on without this terminal. The same command follows it again; `ray job stop {job}` stops it.")
        return INTERRUPTED
    except (RuntimeError, OSError) as error:
        print(f"\nThe head of the cluster does not answer any more ({type(error).__name__}). Where it is gone, start")
        print("it (`ray up`); then give the same command: it goes on where it was.")
        return KILLED
    if info.status == JobStatus.STOPPED:
        return INTERRUPTED
    if info.driver_exit_code is None or info.driver_exit_code < 0:
        print("The command was killed, or its machine went down; give it again, and it goes on where it was.")
        return KILLED
    return info.driver_exit_code
