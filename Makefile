# make demo    installs into .venv and runs the demo
# make test    installs and runs everything that a change has to pass
# make bench   measures HepScale beside coffea's own executors
# make clean   removes what these have made here

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=

# three at a time: tests of workers and of the browser mostly wait
MAKEFLAGS += --jobs=3

.PHONY: demo test lint unit integration packing conformance faults browser system notebooks bench clean

demo: $(VENV)/installed
	$(BIN)/hepscale demo --out $(VENV)/demo

# what takes longest comes first; the kernel too, or `browser` would be the last to begin
test: $(VENV)/ipykernel-6.31.0 integration packing faults browser unit notebooks lint conformance

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

unit: system $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/unit $(PYTEST_ARGS)

integration: system $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/integration $(PYTEST_ARGS)

# environments that are packed, unpacked and run in
packing: system $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/packing $(PYTEST_ARGS)

# every engine against the same tests
conformance: system $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/conformance $(PYTEST_ARGS)

# workers that are killed, stopped, cut off, refused, out of room
faults: system $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/faults $(PYTEST_ARGS)

# somebody at JupyterLab and Notebook 7; a kernel of the time before subshells is kept beside the newest
browser: system $(VENV)/installed-dev $(VENV)/ipykernel-6.31.0
	HEPSCALE_OLD_IPYKERNEL=$(CURDIR)/$(VENV)/ipykernel-6.31.0 \
	  $(BIN)/python -m pytest tests/browser $(PYTEST_ARGS)

$(VENV)/ipykernel-%: | $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --no-deps --target $@ ipykernel==$*

# root's tests make a Debian chroot, try another shell and start Slurm; Work Queue's worker and C library
# are for the workqueue engine; the browser needs a font
SYSTEM := chromium fonts-dejavu-core debootstrap busybox-static coop-computing-tools \
  coop-computing-tools-dev zlib1g-dev bubblewrap munge slurm-wlm squid
system:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  dpkg -s $(SYSTEM) >/dev/null 2>&1 || apt-get install --quiet --yes $(SYSTEM) || \
	  { apt-get update --quiet && apt-get install --quiet --yes $(SYSTEM); }; fi

# twice: what a notebook leaves behind must not change the next run
notebooks: $(VENV)/installed-dev
	$(BIN)/python -m pytest --nbval notebooks $(PYTEST_ARGS)
	$(BIN)/python -m pytest --nbval notebooks $(PYTEST_ARGS)

bench: $(VENV)/installed-dev $(VENV)/installed-bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# without the system's ensurepip (Debian splits it off) the pip that is there installs another
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(VENV)/bin/python install --quiet pip; }
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-%: pyproject.toml $(VENV)/installed
	$(BIN)/python -m pip install --quiet --group $*
	touch $@
