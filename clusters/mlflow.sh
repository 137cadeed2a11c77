#!/usr/bin/env bash
# MLflow's server on the head, kept alive: `mlflow.sh start` (again, where it runs), `mlflow.sh stop`.
#
# It listens on loopback alone: what talks to it is the uploader beside the driver, and the user through `ray attach -p`.
# Artifacts pass through it, so nobody else needs the bucket's keys. Its log: $SGAN_STATE/mlflow.log.
set -euo pipefail
. "$HOME/.sgan.env"
log=$SGAN_STATE/mlflow.log pid=$SGAN_STATE/mlflow.pid

stop() { # the supervisor and the server are one process group
    if [ -s "$pid" ] && grep -qs mlflow.sh "/proc/$(cat "$pid")/cmdline"; then
        kill -TERM -- "-$(cat "$pid")"
    fi
    rm -f "$pid"
}

serve() {
    export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # eight processes that nothing here uses
    export MLFLOW_SQLALCHEMYSTORE_POOLCLASS=QueuePool # the caller's may be one that knows no size
    export MLFLOW_SQLALCHEMYSTORE_POOL_SIZE=40 # with SQLAlchemy's five a burst of writers waits until it fails
    export MLFLOW_DISABLE_TELEMETRY=true
    # By environment: a database's address may hold a password, and every local user can read a command line.
    export MLFLOW_BACKEND_STORE_URI=$SGAN_MLFLOW_DATABASE
    while true; do
        mlflow server --host 127.0.0.1 --port "${MLFLOW_TRACKING_URI##*:}" --workers 2 \
            --artifacts-destination "${SGAN_STORE%%\?*}/mlartifacts" || true
        echo "mlflow.sh: the server ended; starting it again"
        sleep 2
    done
}

case ${1:-} in
start)
    stop
    setsid --fork "$0" serve </dev/null >>"$log" 2>&1
    ;;
serve)
    echo $$ >"$pid"
    serve
    ;;
stop) stop ;;
*) echo "usage: $0 start | stop" >&2 && exit 2 ;;
esac
