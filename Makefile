# `make ablation` and `make test` make the environment first. They need Python 3.11 to 3.13 with pip, nothing else.
PYTHON ?= python3
ENV := .venv
BIN := $(ENV)/bin
UV := .uv/bin/uv
ARGS ?=
SEED ?= 0
ROUNDS ?= 1
SYNC = $(UV) pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode
EDITABLE = $(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --no-index --editable .

.PHONY: ablation test test-lowest test-slow check chaos chaos-cluster bench audit commit lock clean

ablation: $(ENV)/made
	$(BIN)/python sweeps/ablation.py $(ARGS)

# The quick tests, meant to take at most six minutes on two idle cores.
test: $(ENV)/dev
	$(BIN)/python -m pytest -m "not slow and not cluster" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# The rest: they start clusters and servers, and kill them. Those that need what a machine lacks (root, sshd) skip.
test-slow: $(ENV)/dev
	$(BIN)/python -m pytest -m "slow or cluster" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# The quick tests with the lowest versions that pyproject.toml allows, in an environment of their own.
LOWEST = $(ENV)-lowest
test-lowest: $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(LOWEST)
	$(UV) pip compile --quiet --resolution lowest-direct --group dev pyproject.toml --output-file $(LOWEST)/lowest.txt
	$(UV) pip install --quiet --python $(LOWEST)/bin/python --requirements $(LOWEST)/lowest.txt --editable .
	$(LOWEST)/bin/python -m pytest -m "not slow and not cluster" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(ENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

chaos: $(ENV)/dev
	$(BIN)/python tests/chaos.py --seed $(SEED) --rounds $(ROUNDS)

# The same on a cluster of hosts (Linux namespaces; as root) whose store is a bucket.
chaos-cluster: $(ENV)/dev
	$(BIN)/python tests/cluster/cluster_chaos.py --seed $(SEED) --rounds $(ROUNDS)

bench: $(ENV)/dev
	$(BIN)/python benchmarks/all.py $(ARGS)

# A report: it needs a service that may be out of reach, and a person judges what it finds.
audit: $(UV)
	-timeout 120 $(UV) tool run --quiet pip-audit --requirement requirements.lock --disable-pip --progress-spinner off

# Before `ray up cluster.yaml`: git's folder stays here, so a cluster is told the commit of the code it gets.
commit: $(ENV)/made
	$(BIN)/python -m sweeps.planning.manifest > clusters/COMMIT

# A uv of its own, outside the environment: Debian's Python has no venv module of its own, and uv needs none.
$(UV): uv.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("Python 3.11 to 3.13 is needed, but $(PYTHON) is %d.%d: name another one, as in make PYTHON=python3.12" % v)'
	$(PYTHON) -m pip install --quiet --require-hashes --upgrade --target .uv -r uv.txt

# Bytecode is compiled once here; otherwise every Ray worker would compile torch, ray and mlflow anew.
$(ENV)/made: requirements.lock pyproject.toml $(UV)
	@echo "Making the environment in $(ENV): it downloads about 3.3 GB, most of it torch with CUDA, and takes 6.5 GB on disk (6.9 GB with the tests)."
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(ENV)
	$(SYNC) requirements.lock
	$(EDITABLE)
	touch $@

# The same with all that tests and checks need.
$(ENV)/dev: requirements-dev.lock $(ENV)/made
	@echo "Adding to $(ENV) what tests need."
	$(SYNC) requirements-dev.lock
	$(EDITABLE)
	touch $@

# After a change of the dependencies in pyproject.toml. The lock files hold hashes and no addresses; versions stay where
# they can. `make lock COMPILE_ARGS=--upgrade` takes new ones.
COMPILE = timeout 300 $(UV) pip compile --quiet --universal --no-emit-index-url --no-header --generate-hashes $(COMPILE_ARGS)
lock: $(UV)
	$(COMPILE) --python-version 3.11 pyproject.toml --output-file requirements.lock
	$(COMPILE) --python-version 3.11 --group dev --constraints requirements.lock pyproject.toml \
		--output-file requirements-dev.lock
	echo "uv==$$($(UV) --version | cut -d' ' -f2)" | $(COMPILE) - --output-file uv.txt

clean:
	rm -rf $(ENV) .uv
