"""Build the web page of lab 04 with Node.js: ``labs/web`` becomes ``build/web/site``.

    python tools/web_page.py     install the locked packages and build; returns at once where nothing is to do

npm's own settings are honoured (registry, proxy, cafile). Without Node.js the course works all the same: lab 04 says
what it cannot show. Exit code 0 also then; 1 if npm or the build fails, which leaves what was there before.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setup_env import ROOT, SetupError, alone_in, remove_folder, run_step, say

OLDEST_NODE = 18
SOURCES = ("src/**/*", "public/**/*", "index.html", "vite.config.ts", "tsconfig.json", "package.json")
NPM_CI = (
    *("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--prefer-offline"),
    *("--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000"),
)


class Page:
    """The page's source in ``web``, its build in ``site``, and the stamps that say what each was made from."""

    def __init__(self, web: Path = ROOT / "labs" / "web", site: Path = ROOT / "build" / "web" / "site") -> None:
        self.web, self.site = web, site
        self.modules = web / "node_modules"
        self.modules_stamp = self.modules / ".deploylab"
        self.site_stamp = site.with_name("stamp")

    def ensure(self) -> None:
        """Install and build what is not up to date. Raises :class:`SetupError`."""
        if self.is_current():
            return
        npm = require_npm()
        with alone_in(self.web):
            if _read(self.modules_stamp) != self.lock():
                run_step("Installing the packages of the web page (lab 04)", [npm, *NPM_CI], cwd=self.web)
                self.modules_stamp.write_text(self.lock())
            if not self.is_current():
                self.build(npm)

    def build(self, npm: str) -> None:
        draft = self.site.with_name("draft")
        shutil.rmtree(draft, ignore_errors=True)
        environment = {**os.environ, "DEPLOYLAB_WEB_OUT": str(draft)}
        run_step("Building the web page (lab 04)", [npm, "run", "--silent", "build"], env=environment, cwd=self.web)
        self.site_stamp.unlink(missing_ok=True)
        if self.site.exists():
            remove_folder(self.site)
        draft.rename(self.site)
        self.site_stamp.write_text(self.fingerprint())

    def is_current(self) -> bool:
        built = _read(self.site_stamp) == self.fingerprint() and (self.site / "index.html").is_file()
        return built and _read(self.modules_stamp) == self.lock()

    def lock(self) -> str:
        """What the packages depend on: some hold programs for one kind of machine."""
        digest = hashlib.sha256((self.web / "package-lock.json").read_bytes())
        return f"{digest.hexdigest()} {platform.system()} {platform.machine()}\n"

    def fingerprint(self) -> str:
        """What the build depends on."""
        digest = hashlib.sha256(self.lock().encode())
        files = {file for pattern in SOURCES for file in self.web.glob(pattern) if file.is_file()}
        for file in sorted(files):
            digest.update(file.relative_to(self.web).as_posix().encode() + b"\0" + file.read_bytes())
        return digest.hexdigest() + "\n"


class NoNodeError(SetupError):
    """Node.js is not here, or too old."""


def require_npm() -> str:
    """The path of npm. Raises :class:`NoNodeError`."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        raise NoNodeError("Node.js or its npm is not installed")
    said = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    version = re.match(r"v(\d+)\.", said)
    if not version or int(version[1]) < OLDEST_NODE:
        raise NoNodeError(f"Node.js {said or 'here'} is too old or does not run")
    return npm


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


NO_NODE = f"""\
Lab 04's web page is not built: {{error}}. The rest of the course works without it.
For the page install Node.js {OLDEST_NODE} or later (Debian/Ubuntu: sudo apt install nodejs npm), then: make web"""
FAILED = """
Lab 04's web page is not built: {error}
The rest of the course works without it; `make web` tries again. npm's own settings are honoured (npm config set
registry, proxy or cafile)."""


def main() -> int:
    try:
        Page().ensure()
    except NoNodeError as error:
        say(NO_NODE.format(error=error))
    except SetupError as error:
        print(FAILED.format(error=error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
