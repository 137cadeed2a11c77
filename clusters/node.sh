#!/usr/bin/env bash
# What every node of a cluster runs, in the order of `ray up`: `node.sh setup`, then `node.sh head` or `node.sh worker`.
#
# setup reads SGAN_STORE, the address of the output store that every node reaches, and optionally SGAN_MLFLOW_DATABASE,
# as SQLAlchemy writes it; by default that is an SQLite file on the head.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
settings=$HOME/.sgan.env

setup() {
    make .venv/made
    local state=$HOME/.local/state/sgan
    mkdir -p "$state"
    (umask 077 && cat >"$settings") <<END # an address of a database may hold a password
export PATH="$PWD/.venv/bin:\$PATH"
export SGAN_HOME="$PWD"
export SGAN_STATE="$state"
export SGAN_STORE="${SGAN_STORE:?is the address of the output store}"
export SGAN_MLFLOW_DATABASE="${SGAN_MLFLOW_DATABASE:-sqlite:///$state/mlflow.db}"
export MLFLOW_TRACKING_URI=http://127.0.0.1:5000
export RAY_AUTH_MODE=token
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 RAY_USAGE_STATS_ENABLED=0
# A node that falls silent is given up after 24 s at most, and gives up after 30 s; Ray's defaults take a minute. The
# stages that it ran are given up within a minute, after the node itself; Ray's defaults take seven.
export RAY_health_check_initial_delay_ms=10000 RAY_health_check_period_ms=3000
export RAY_health_check_timeout_ms=5000 RAY_health_check_failure_threshold=3
export RAY_gcs_rpc_server_reconnect_timeout_s=30
export RAY_grpc_client_keepalive_time_ms=10000 RAY_grpc_client_keepalive_timeout_ms=25000
# Ray would show its own counters to everybody, on a port of each node and on two of the head: no collection, and no port.
export RAY_enable_metrics_collection=0 AUTOSCALER_METRIC_PORT=-1 DASHBOARD_METRIC_PORT=-1
END
    grep -qsF "$settings" ~/.bashrc || echo ". $settings" >>~/.bashrc
}

start() {
    ray stop >/dev/null 2>&1 || true
    ulimit -n 65536 2>/dev/null || true # a node has several open files for every other one
    ray start --object-manager-port=8076 "$@"
}

case ${1:-} in
setup) setup ;;
head)
    . "$settings"
    # One secret for the whole cluster: the autoscaler copies the file to every worker (cluster_synced_files).
    [ -s ~/.ray/auth_token ] || (umask 077 && ray get-auth-token --generate >/dev/null)
    chmod 600 ~/.ray/auth_token
    clusters/mlflow.sh start
    start --head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config="$HOME/ray_bootstrap_config.yaml" "${@:2}"
    ;;
worker)
    . "$settings"
    start --address="$RAY_HEAD_IP:6379" "${@:2}"
    ;;
*) echo "usage: $0 setup | head | worker [options of ray start]" >&2 && exit 2 ;;
esac
