# `make lab` and `make test` are all most people need. Without make: python tools/setup_env.py lab
PYTHON ?=
BOOT := $(firstword $(foreach name,$(PYTHON) python3 python3.13 python3.12 python3.11 python3.10 python,$(shell command -v $(name))))
RUN = $(or $(BOOT),$(error No Python found. Install Python 3.10 to 3.13, or name one: make lab PYTHON=/path/to/python3)) \
	tools/setup_env.py $(if $(PYTHON),--python $(PYTHON))

.DEFAULT_GOAL := help
.PHONY: help lab test tour setup web native servers boards format lint lock clean distclean

help:
	@echo "make lab        set up the core and open the course in JupyterLab"
	@echo "make test       set up everything and run every test and every notebook"
	@echo "make tour       doctor, then one model through every engine (one to two minutes, no browser)"
	@echo "make setup      only set up (ALL=1: with all extras)"
	@echo "make web        build the web page of lab 04 (needs Node.js)"
	@echo "make native     build ncnn's C++ library for lab 22 (needs a C++ compiler and CMake; about a minute)"
	@echo "make servers    set up the model servers of lab 05 that need an environment of their own"
	@echo "make boards     make emulated Raspberry Pi and Jetson CPUs (needs Debian or Ubuntu; about a minute, 600 MB)"
	@echo "make format     format and fix code and notebooks;  make lint only checks"
	@echo "make lock       compile constraints.txt from pyproject.toml (UPGRADE=1: newest versions)"
	@echo "make clean      remove build/ and caches;  make distclean removes .venv, .envs and node_modules too"
	@echo "PYTHON=/path/to/python3.12 before or after a target builds .venv from that Python (3.10 to 3.13)."

lab test tour web native servers boards format lint clean distclean:
	@$(RUN) $@

setup:
	@$(RUN) setup $(if $(ALL),--all)

lock:
	@$(RUN) lock $(if $(UPGRADE),--upgrade)
