# Each command works on a fresh clone: Python 3.11 or later is all that has to be there.
PYTHON ?= python3
PY := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help install demo test check fmt slow chaos bench-transactional bench-import bench-wire bench-mime bench-limits bench-find bench-send bench-release bench-fairness bench-users bench-dkim bench-progress wheel up down clean lock

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /|/' | awk -F'|' '{printf "  make %-13s %s\n", $$1, $$2}'

install: ## .venv from the lock, and Kafka; nothing to do when both are there
	@$(PYTHON) devstack/install.py

demo: install ## the whole main job on real servers: import 20,000 leads, send to all of them, count what arrived
	@$(PY) -m devstack demo

# Two processes, each with servers of its own: a test mostly waits. Those of the whole system judge by time: they come alone.
test: install ## all tests, on real servers that they start and stop
	@$(PY) -m pytest -n 2 --dist worksteal tests/unit tests/integration
	@$(PY) -m pytest tests/acceptance

check: install ## lint, types, imports, published contracts
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports
	@$(PY) -m schemas.publish --check

fmt: install ## format and sort imports
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

slow: install ## what takes minutes: twenty starts of the consumer race, servers away for minutes
	@$(PY) -m pytest -m slow

chaos: install ## faults under load: killed, frozen, cut, away; each once, or ROUNDS=…, SEED=…, SECONDS=… of a fault, FAULTS=names
	@$(PY) -m devstack.chaos

bench-import: install ## 2,000,000 leads over HTTP beside one raw COPY; ROWS=… for fewer
	@$(PY) -m bench.imports

bench-limits: install ## what arrives under a limit: one worker, four, one of them killed, Valkey flushed; RATE=… SECONDS=…
	@$(PY) -m bench.limits

bench-find: install ## one address among 10,000,000 mails, over HTTP; ROWS=… for fewer
	@$(PY) -m bench.find

bench-transactional: install ## a transactional mail's way while BULK=… (1,000,000) bulk mails are sent; first mail of a campaign
	@$(PY) -m bench.transactional

bench-wire: install ## 200,000 mails to the sink, written ahead and one by one, beside a bare loop; MAILS=… for fewer
	@$(PY) -m bench.wire

bench-send: install ## 200,000 mails of 4 KB from ledger to relay, beside a bare loop; one by one, TLS, refusals; MAILS=… for fewer
	@$(PY) -m bench.send

bench-mime: install ## what rendering and building a mail of 4 KB costs, beside EmailMessage; ROUNDS=…
	@$(PY) -m bench.mime

bench-release: install ## 2,000,000 mails of one user, the first 100,000 beside the last; ROWS=… for fewer
	@$(PY) -m bench.release

bench-fairness: install ## 100 mails alone and beside 1,000,000; ROWS=… for fewer
	@$(PY) -m bench.fairness

bench-users: install ## 10,000 users without a limit; USERS=…, MAILS=…, SECONDS=…
	@$(PY) -m bench.users

bench-dkim: install ## what DKIM costs a mail, signed on the loop, on threads, on processes; MAILS=… for fewer
	@$(PY) -m bench.dkim

bench-progress: install ## what watching a send costs, how soon a WebSocket tells, LISTENERS=… connections; MAILS=…, PAIRS=…
	@$(PY) -m bench.progress

wheel: install ## the Python client, as product developers install it, into dist/
	@$(PY) -m pip --disable-pip-version-check wheel -q --no-deps --no-build-isolation -w dist ./mailgenius

up: install ## leave everything running; prints addresses and a fresh API key
	@$(PY) -m devstack up

down: ## stop what `make up` started
	@test ! -x $(PY) || $(PY) -m devstack down

clean: down ## stop, and remove all data
	@test ! -x $(PY) || $(PY) -m devstack clean

lock: install ## resolve the dependencies anew, into the lock files
	@$(PY) -m pip install -q uv
	@.venv/bin/uv pip compile -q --python-version 3.11 --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --no-annotate pyproject.toml -o requirements.lock
	@.venv/bin/uv pip compile -q --python-version 3.11 --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --no-annotate -c requirements.lock pyproject.toml --group dev -o requirements-dev.lock
