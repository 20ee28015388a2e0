# Everything runs in .venv, but for the demo, which needs the package alone and has .demo. Both are made anew when
# pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := -p pybackup.cli -p pybackup.core -p pybackup.formats

.PHONY: setup test test-debian13 lint types demo bench stress man picture install clean

setup: .venv/ready

# What pip makes to find an editable package takes longer to load than Python itself; a path does as well.
.venv/ready: pyproject.toml | .packages/pybackup
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	for path in .venv/lib/python*/site-packages/__editable__.pybackup*.pth; do echo "$(CURDIR)/.packages" > $$path; done
	touch $@

# Python, mypy and import-linter find the package in a folder that holds a link named pybackup to this checkout.
.packages/pybackup:
	mkdir -p .packages
	ln -sfn .. $@

lint: .venv/ready .packages/pybackup
	$(BIN)/ruff check .
	PYTHONPATH=.packages $(BIN)/lint-imports --no-cache

types: .venv/ready .packages/pybackup
	MYPYPATH=.packages $(BIN)/mypy --strict $(PACKAGES)

# Two workers, for most tests wait for other processes.
test: lint types
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(PYTEST_ARGS)

# The same on Debian 13, in a chroot below ~/.cache, or in DEBIAN13=FOLDER. Needs root and debootstrap.
test-debian13:
	.ci/debian13 $(PYTEST_ARGS)

demo: .demo/ready
	@PATH="$(CURDIR)/.demo/bin:$$PATH" sh tests/demo.sh

.demo/ready: pyproject.toml | .packages/pybackup
	@echo "pybackup and what it needs are installed into $(CURDIR)/.demo, and nowhere else; 'make clean' removes it."
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) makes no virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv .demo
	@.demo/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	@for path in .demo/lib/python*/site-packages/__editable__.pybackup*.pth; do echo "$(CURDIR)/.packages" > $$path; done
	@touch $@

bench: .venv/ready
	$(BIN)/python tests/bench/bench.py $(BENCH_ARGS)

stress: .venv/ready
	$(BIN)/python -m pytest tests/stress -o norecursedirs=.* --timeout=0 $(PYTEST_ARGS)

man: .venv/ready
	$(BIN)/python man/generate.py

picture: .venv/ready
	$(BIN)/python man/picture.py

install:
	$(PYTHON) -m pip install .

clean:
	rm -rf .venv .demo build dist *.egg-info .packages .mypy_cache .pytest_cache .ruff_cache .hypothesis
