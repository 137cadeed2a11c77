# `make ablation` and `make test` make the environment first. They need Python 3.11 to 3.13 with pip, nothing else.
PYTHON ?= python3
ENV := .venv
BIN := $(ENV)/bin
UV := .uv/bin/uv
ARGS ?=
SEED ?= 0
ROUNDS ?= 1

.PHONY: ablation test check chaos bench audit clean

ablation: $(ENV)/made
	$(BIN)/python sweeps/ablation.py $(ARGS)

test: $(ENV)/made
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

chaos: $(ENV)/made
	$(BIN)/python tests/chaos.py --seed $(SEED) --rounds $(ROUNDS)

bench: $(ENV)/made
	$(BIN)/python benchmarks/all.py $(ARGS)

# A report: it needs a service that may be out of reach, and what it finds must be judged by somebody.
audit: $(UV)
	-timeout 120 $(UV) tool run --quiet pip-audit --requirement requirements.lock --disable-pip --progress-spinner off

check: $(ENV)/made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# A uv of its own, outside the environment: Debian's Python has no venv module of its own, and uv needs none.
$(UV): uv.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("Python 3.11 to 3.13 is needed, but $(PYTHON) is %d.%d: name another one, as in make PYTHON=python3.12" % v)'
	$(PYTHON) -m pip install --quiet --require-hashes --upgrade --target .uv -r uv.txt

# Bytecode is compiled once here; otherwise every Ray worker would compile torch, ray and mlflow anew.
$(ENV)/made: requirements.lock pyproject.toml $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(ENV)
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --no-index --editable .
	touch $@

# Before `ray up cluster.yaml`: git's folder stays here, so a cluster is told the commit of the code it gets.
.PHONY: commit
commit: $(ENV)/made
	$(BIN)/python -m sweeps.planning.manifest

# After a change of the dependencies in pyproject.toml. The lock file holds hashes and no addresses.
.PHONY: lock
lock: $(UV)
	$(UV) pip compile --quiet --universal --no-emit-index-url --no-header --generate-hashes --python-version 3.11 \
		--group dev pyproject.toml --output-file requirements.lock
	echo "uv==$$($(UV) --version | cut -d' ' -f2)" | $(UV) pip compile --quiet --universal --no-emit-index-url \
		--no-header --generate-hashes - --output-file uv.txt

clean:
	rm -rf $(ENV) .uv
