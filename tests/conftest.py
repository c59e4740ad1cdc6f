"""Tests run as `make test` starts them, also under a bare ``pytest``: caches in build/, vendors' telemetry off."""

import os

import setup_env

os.environ.update(setup_env.contained(os.environ))
