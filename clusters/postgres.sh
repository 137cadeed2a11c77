#!/usr/bin/env bash
# PostgreSQL for MLflow on this machine (Debian or Ubuntu, with sudo), after `node.sh setup`. MLflow's server reaches it
# by its Unix socket as this user, so there is no password; it listens on loopback alone, which is Debian's default.
set -euo pipefail
sudo DEBIAN_FRONTEND=noninteractive apt-get -qqy install postgresql
sudo -u postgres psql -qtAc "SELECT 1 FROM pg_roles WHERE rolname = '$USER'" | grep -q 1 ||
    sudo -u postgres createuser "$USER"
sudo -u postgres psql -qtAc "SELECT 1 FROM pg_database WHERE datname = 'mlflow'" | grep -q 1 ||
    sudo -u postgres createdb --owner "$USER" mlflow
echo 'export SGAN_MLFLOW_DATABASE="postgresql+psycopg:///mlflow?host=/var/run/postgresql"' >>"$HOME/.sgan.env"
