"""The set-up of lab 04's web page: nothing to do twice, a sentence without Node, nothing lost by a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import setup_env
import web_page
from setup_env import SetupError
from web_page import NoNodeError, Page

needs_node = pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="needs Node.js and npm")

PACKAGE = '{"name": "tiny", "version": "0.0.0", "scripts": {"build": "node build.mjs"}%s}'
LOCK = (
    '{"name": "tiny", "version": "0.0.0", "lockfileVersion": 3, "packages": {"": {"name": "tiny", "version": "0.0.0"}}}'
)
BUILD = """
import { cpSync } from "node:fs";
cpSync("src", process.env.DEPLOYLAB_WEB_OUT, { recursive: true });
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    """A page without packages, so that npm needs no network; whom it asks all the same does not answer."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    web = tmp_path / "web"
    (web / "src").mkdir(parents=True)
    (web / "src" / "index.html").write_text("<h1>One</h1>")
    (web / "build.mjs").write_text(BUILD)
    (web / "package.json").write_text(PACKAGE % "")
    (web / "package-lock.json").write_text(LOCK)
    (web / "node_modules").mkdir()
    return Page(web, tmp_path / "build" / "web" / "site")


@needs_node
def test_it_is_built_once_and_again_when_a_source_changes(page, capsys):
    page.site.parent.mkdir(parents=True)
    page.ensure()
    assert (page.site / "index.html").read_text() == "<h1>One</h1>"
    capsys.readouterr()
    page.ensure()
    assert capsys.readouterr().out == ""

    (page.web / "src" / "index.html").write_text("<h1>Two</h1>")
    page.ensure()
    assert (page.site / "index.html").read_text() == "<h1>Two</h1>"
    assert "Installing" not in capsys.readouterr().out

    shutil.rmtree(page.site.parent)  # make clean
    page.ensure()
    assert page.is_current()
    assert "Installing" not in capsys.readouterr().out


@needs_node
def test_a_failed_build_and_an_unreachable_registry_leave_the_page_as_it_was(page):
    page.ensure()
    (page.web / "build.mjs").write_text("process.exit(3)")
    (page.web / "src" / "index.html").write_text("<h1>Two</h1>")
    with pytest.raises(SetupError, match="Building the web page"):
        page.ensure()
    assert (page.site / "index.html").read_text() == "<h1>One</h1>"
    assert not page.is_current()

    (page.web / "package.json").write_text(PACKAGE % ', "dependencies": {"a-package": "1.0.0"}')
    lock = LOCK[:-2].replace('"version": "0.0.0"}', '"version": "0.0.0", "dependencies": {"a-package": "1.0.0"}}')
    entry = '"version": "1.0.0", "integrity": "sha512-' + "A" * 86 + '=="'
    (page.web / "package-lock.json").write_text(lock + ', "node_modules/a-package": {' + entry + "}}}")
    with pytest.raises(SetupError, match="Installing the packages of the web page"):
        page.ensure()
    assert (page.site / "index.html").read_text() == "<h1>One</h1>"


def test_without_node_there_is_a_sentence_and_no_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Page, "is_current", lambda self: False)
    assert web_page.main() == 0
    said = capsys.readouterr().out
    assert "Lab 04's web page is not built: Node.js or its npm is not installed." in said
    assert "make web" in said


@pytest.mark.skipif(os.name == "nt", reason="makes programs out of shell scripts")
@pytest.mark.parametrize("version", ["v16.20.2", "command not found"])
def test_an_old_or_broken_node_is_refused(tmp_path, monkeypatch, version):
    for name in ("node", "npm"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoNodeError, match="too old or does not run"):
        web_page.require_npm()


def test_a_failure_stops_nothing_but_the_page(monkeypatch, capsys):
    def fail(self):
        raise SetupError("Installing failed (exit code 1).")

    monkeypatch.setattr(Page, "ensure", fail)
    assert web_page.main() == 1
    assert "The rest of the course works without it" in capsys.readouterr().err


@needs_node
def test_the_checkouts_own_page_is_current_or_said_to_be_missing():
    """After a set-up a second run does nothing, and needs neither network nor npm."""
    if not Page().is_current():
        pytest.skip("the page is not built here (make web)")
    command = [sys.executable, str(setup_env.ROOT / "tools" / "web_page.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": os.devnull})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
