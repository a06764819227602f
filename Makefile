# Every target makes what it needs; the environment is .venv, made once with plain pip.
#   make demo     a tiny reasoner gets measurably better through every stage of the Fathom-R1 recipe (minutes, CPU)
#   make test     lint, then the whole test suite
#   make check    lint and the tests of the architecture alone (seconds)
#   make proof    the tiny recipe and its -RS twin at evaluation size for three seeds, recorded for the README's tables (long)

# Idle OpenMP threads must sleep, not spin: on two cores spinning doubles the bill.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
SEEDS ?= 0 1 2

.PHONY: install demo test check proof clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "fathom needs Python 3.11 or newer with the venv module"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/fathom run recipes/fathom-r1-tiny.yaml

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_packaging.py

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

proof: $(STAMP)
	set -e; for seed in $(SEEDS); do \
		$(BIN)/fathom run recipes/fathom-r1-tiny-proof.yaml --set seed=$$seed --out runs/proof-$$seed $(ARGS); \
		$(BIN)/fathom run recipes/fathom-r1-rs-tiny-proof.yaml --set seed=$$seed --out runs/rs-proof-$$seed $(ARGS); done
	$(BIN)/python scripts/readme.py record tiny-proof --command 'make proof$(if $(ARGS), ARGS="$(ARGS)")' $(foreach s,$(SEEDS),runs/proof-$(s))
	$(BIN)/python scripts/readme.py record rs-tiny-proof --command 'make proof$(if $(ARGS), ARGS="$(ARGS)")' $(foreach s,$(SEEDS),runs/rs-proof-$(s))
	$(BIN)/python -m pytest -q -m proof

clean:
	rm -rf .venv runs build dist
