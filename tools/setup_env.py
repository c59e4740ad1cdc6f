"""Set up DeployLab in ``.venv`` and run its commands: ``python tools/setup_env.py lab``, ``test``, ``tour``, ...

The Makefile calls this script; where there is no make, call it yourself. It needs only the standard library and reads
on any Python 3.7 or later, so that an unsuitable Python gets a sentence instead of a syntax error.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 10), (3, 13)
ALL_EXTRAS = ("mobile", "compilers", "serving", "quantize", "dev")
NEEDED_GB = {False: 2, True: 6}  # free disk for the core, for all extras, with CPU torch
WINDOWS = os.name == "nt"


class SetupError(Exception):
    """A step failed; the message says what to do. ``cause`` is a key of ADVICE."""

    def __init__(self, message, cause=""):
        super().__init__(message)
        self.cause = cause


def say(text):
    print(text, flush=True)


# --- which Python -----------------------------------------------------------------------------------------------------

PROBE = (
    "import json, struct, sys; print(json.dumps({"
    "'path': getattr(sys, '_base_executable', None) or sys.executable, 'version': list(sys.version_info[:3]),"
    "'bits': 8 * struct.calcsize('P'), 'implementation': sys.implementation.name}))"
)


def probe(command):
    """Facts about one interpreter, or None where it does not run."""
    try:
        done = subprocess.run([command, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
        return json.loads(done.stdout.decode()) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def objection(facts):
    """Why this interpreter cannot carry the course, or None."""
    version = tuple(facts["version"])
    if not OLDEST <= version[:2] <= NEWEST:
        return "is Python {}.{}.{}".format(*version)
    if facts["bits"] != 64:
        return "is a 32-bit Python"
    if facts["implementation"] != "cpython":
        return f"is {facts['implementation']}, not CPython"
    return None


def find_python(asked=None):
    """The interpreter to build ``.venv`` from: the one asked for, else this one, else a suitable one on PATH."""
    newest_first = [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    candidates = [asked] if asked else [sys.executable, "python3", *newest_first]
    refused = []
    for candidate in candidates:
        facts = probe(candidate)
        problem = objection(facts) if facts else "does not run"
        if problem is None:
            return facts["path"]
        if facts or asked:
            refused.append(f"{candidate} {problem}")
    raise SetupError(
        f"DeployLab needs a 64-bit CPython 3.{OLDEST[1]} to 3.{NEWEST[1]}, but {'; '.join(refused)}.\n"
        "Install one (Debian/Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.13; "
        "Windows: python.org)\nor name one: make lab PYTHON=/path/to/python3.12"
    )


def venv_python(venv):
    return venv / ("Scripts/python.exe" if WINDOWS else "bin/python")


def venv_tool(venv, name):
    return str(venv / ("Scripts" if WINDOWS else "bin") / (name + (".exe" if WINDOWS else "")))


# --- pip's settings for uv --------------------------------------------------------------------------------------------


def pip_settings(python):
    """pip's own settings from its environment variables and configuration files, e.g. ``{"find-links": "/wheels"}``."""
    done = subprocess.run([str(python), "-m", "pip", "config", "list"], capture_output=True)
    found = {}
    for line in done.stdout.decode(errors="replace").splitlines():
        match = re.match(r"(global|install|:env:)\.([\w-]+)=(.*)$", line)
        if match:
            try:
                value = ast.literal_eval(match.group(3))
            except (SyntaxError, ValueError):
                continue
            found.setdefault(match.group(1), {})[match.group(2).replace("_", "-").lower()] = str(value)
    merged = {}
    for layer in ("global", "install", ":env:"):  # the later wins, as in pip
        merged.update(found.get(layer, {}))
    return merged


def uv_environment(settings, environ):
    """The environment in which uv behaves as pip with ``settings`` would. A UV_ variable the user set stays."""
    env = dict(environ)

    def pass_on(variable, value, unless=()):
        if value and not any(name in environ for name in (variable, *unless)):
            env[variable] = value

    folders_or_urls = settings.get("find-links", "").split()
    reachable = [item for item in folders_or_urls if "://" in item or os.path.exists(item)]
    extra = settings.get("extra-index-url", "").split()
    pass_on("UV_FIND_LINKS", ",".join(reachable))
    pass_on("UV_DEFAULT_INDEX", settings.get("index-url"), unless=["UV_INDEX_URL"])
    pass_on("UV_INDEX", " ".join(extra), unless=["UV_EXTRA_INDEX_URL"])
    if extra:  # pip takes the best version of all indexes, uv by default stops at the first that knows the name
        pass_on("UV_INDEX_STRATEGY", "unsafe-best-match")
    pass_on("UV_INSECURE_HOST", settings.get("trusted-host"))
    pass_on("UV_HTTP_TIMEOUT", settings.get("timeout") or settings.get("default-timeout"))
    pass_on("SSL_CERT_FILE", settings.get("cert"))
    pass_on("SSL_CLIENT_CERT", settings.get("client-cert"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        pass_on(name, settings.get("proxy"), unless=[name.lower()])
    if truthy(settings.get("no-cache-dir")):
        pass_on("UV_NO_CACHE", "1")
    env["UV_PYTHON_DOWNLOADS"] = "never"
    return env


def truthy(value):
    return str(value).strip().lower() in ("1", "true", "yes", "on")


# --- running a step ---------------------------------------------------------------------------------------------------

CAUSES = (
    (r"No space left on device|ENOSPC|os error 28\b|os error 112\b", "disk"),
    (r"Permission denied|Read-only file system|os error 13\b|os error 30\b", "permission"),
    (r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|UnknownIssuer|SSLError", "certificate"),
    (
        r"Connection refused|dns error|Temporary failure in name|Name or service not known|timed out|tcp connect error"
        r"|Failed to establish a new connection|Network is unreachable|NewConnectionError|ProxyError|tunnel"
        r"|No matching distribution found for uv|error sending request|Could not fetch URL|getaddrinfo failed",
        "index",
    ),
    (r"No solution found|ResolutionImpossible|not found in the package registry|No matching distribution", "version"),
)

ADVICE = {
    "disk": "The disk is full. Free some space (`df -h .` shows it; `.venv/bin/uv cache clean` empties uv's cache).",
    "permission": "A folder cannot be written. Clone into a folder of your own; do not mix runs with and without sudo.",
    "certificate": "The index's certificate is not trusted, as behind a company proxy: set PIP_CERT=/path/to/ca.pem.",
    "index": (
        "The package index was not reached. Behind a proxy set HTTPS_PROXY=http://host:port; for a mirror set\n"
        "PIP_INDEX_URL; without a network use a folder of wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=/path/to/wheelhouse\n"
        "(README, Offline)."
    ),
    "version": (
        "A package that constraints.txt names is not offered for this Python and machine by your index.\n"
        "Check PIP_INDEX_URL and PIP_FIND_LINKS, or try another Python, as in: make lab PYTHON=python3.12."
    ),
    "": "The lines above are the tool's own words.",
}


NOTHING_WRITTEN = ("certificate", "index", "version")  # uv fetches everything before it installs anything


def cause_of(output):
    """The key of ADVICE that fits a tool's output; empty where none does."""
    return next((cause for pattern, cause in CAUSES if re.search(pattern, output, re.IGNORECASE)), "")


def run_step(what, command, env=None, cwd=ROOT):
    """Run one step with its output passed on; on failure raise SetupError with the cause in plain words."""
    say("- " + what)
    started, lines = time.time(), []
    process = subprocess.Popen(
        [str(part) for part in command], env=env, cwd=str(cwd), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            lines.append(line)
            say("    " + line)
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code != 0:
        cause = cause_of("\n".join(lines))
        raise SetupError(f"{what} failed (exit code {code}).\n{ADVICE[cause]}", cause)
    say(f"    done in {time.time() - started:.0f} s")


# --- the environment --------------------------------------------------------------------------------------------------


class Environment:
    """``.venv`` and the stamp that says what was completely installed into it.

    ``project`` is the folder with pyproject.toml and constraints.txt (a small one in the tests of this script).
    """

    def __init__(self, project=ROOT, asked_python=None):
        self.project = Path(project)
        self.venv = self.project / ".venv"
        self.python = venv_python(self.venv)
        self.asked_python = asked_python
        self.stamp = self.venv / "deploylab-installed.json"
        self.begun = self.venv / "deploylab-installing"

    def fingerprint(self):
        digest = hashlib.sha256(str(self.project.resolve()).encode())
        for name in ("pyproject.toml", "constraints.txt"):
            digest.update((self.project / name).read_bytes())
        return digest.hexdigest()

    def installed(self):
        """The stamp's content; empty where nothing was completely installed."""
        try:
            return json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return {}

    def is_current(self, extras):
        stamp = self.installed()
        return (
            stamp.get("fingerprint") == self.fingerprint()
            and set(extras) <= set(stamp.get("extras", []))
            and not self.reason_to_recreate()
        )

    def reason_to_recreate(self):
        """Why an existing ``.venv`` must go, or None."""
        if not self.venv.exists():
            return None
        if self.begun.exists():
            return "an installation was interrupted"
        facts = probe(str(self.python)) if self.python.exists() else None
        if facts is None:
            return "its Python does not run"
        if objection(facts):
            return "it " + objection(facts)
        if self.stamp.exists() and self.installed().get("folder") != str(self.project.resolve()):
            return "the checkout was moved"
        wanted = probe(self.asked_python) if self.asked_python else None
        if wanted and wanted["version"][:2] != facts["version"][:2]:
            return "another Python was asked for"
        return None

    def ensure(self, extras=()):
        """Create, repair or complete ``.venv`` with the core and ``extras``; returns at once where nothing is to do."""
        if not self.is_current(extras):
            with alone_in(self.project):
                if not self.is_current(extras):
                    self.complete(extras)

    def complete(self, extras):
        reason = self.reason_to_recreate()
        wanted = sorted(set(extras) | set(() if reason else self.installed().get("extras", [])))
        say(f"Setting up DeployLab in {self.venv} ({', '.join(['core', *wanted])})")
        self.check_disk(bool(wanted))
        fresh = reason is not None or not self.venv.exists()
        base = self.check_python() if fresh else None  # before anything that works is removed
        if reason:
            say("- Starting .venv afresh: " + reason)
            remove_folder(self.venv)
        self.venv.mkdir(exist_ok=True)
        self.begun.write_text("This file goes when the installation is complete.\n")
        try:
            if fresh:
                run_step(f"Creating .venv with {base}", [base, "-m", "venv", self.venv])
            self.install(wanted)
        except SetupError as error:
            if error.cause in NOTHING_WRITTEN:
                self.begun.unlink()
            raise
        content = {"fingerprint": self.fingerprint(), "folder": str(self.project.resolve()), "extras": wanted}
        self.stamp.write_text(json.dumps(content, indent=2) + "\n")
        self.begun.unlink()
        say("Ready.")

    def check_disk(self, with_extras):
        used = sum(file.lstat().st_size for file in self.venv.rglob("*") if not file.is_dir()) / 1e9
        needed, free = NEEDED_GB[with_extras], shutil.disk_usage(str(self.project)).free / 1e9
        if free < needed - used:
            raise SetupError(
                f"Not enough disk: {self.project} has {free:.1f} GB free, the installation needs about {needed} GB.\n"
                "Free some space or clone to another disk, then run the same command again."
            )

    def check_python(self):
        """The interpreter to build ``.venv`` from, proven able to."""
        base = find_python(self.asked_python)
        check = subprocess.run([base, "-c", "import venv, ensurepip"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if check.returncode != 0:
            major, minor, _ = probe(base)["version"]
            reason = check.stdout.decode(errors="replace").strip().splitlines()[-1]
            raise SetupError(
                f"{base} cannot make virtual environments: {reason}\n"
                f"Debian/Ubuntu: sudo apt install python{major}.{minor}-venv (or python3-venv), "
                "then run the same command again."
            )
        return base

    def install(self, extras):
        pip = [self.python, "-m", "pip", "--disable-pip-version-check"]
        constraints = self.project / "constraints.txt"
        run_step("Installing uv", [*pip, "install", "--constraint", constraints, "uv"])
        settings = pip_settings(self.python)
        no_index = ["--no-index"] if truthy(settings.get("no-index")) else []
        package = str(self.project) + (f"[{','.join(extras)}]" if extras else "")
        # with bytecode: where Python may not write it (PYTHONDONTWRITEBYTECODE), every start would compile anew
        uv = [venv_tool(self.venv, "uv"), "pip", "install", "--compile-bytecode", "--python", self.python, *no_index]
        run_step(
            "Installing the packages of constraints.txt",
            [*uv, "--constraint", constraints, "--editable", package],
            env=uv_environment(settings, os.environ),
            cwd=self.project,  # uv reads [tool.uv] there
        )


@contextlib.contextmanager
def alone_in(folder):
    """Let a second set-up of ``folder`` wait. The system drops the lock when this process ends, however it ends."""
    handle = os.open(str(folder), os.O_RDONLY) if fcntl else None
    try:
        if fcntl:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("Waiting for another set-up of this folder to end.")
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if fcntl:
            os.close(handle)


def remove_folder(folder):
    try:
        shutil.rmtree(str(folder))
    except OSError as error:
        raise SetupError(f"Cannot remove {folder}: {error}. Close what uses it and remove it by hand.") from error


# --- commands ---------------------------------------------------------------------------------------------------------


def contained(environ):
    """Environment for everything we start: caches and settings inside the checkout, no usage reports.

    Emulated boards, which are large and the same for all checkouts, stay in the user's own cache folder.
    """
    build = ROOT / "build"
    env = dict(environ)
    own = env.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    env.setdefault("DEPLOYLAB_CACHE", os.path.join(own, "deploylab"))
    folders = {
        "IPYTHONDIR": "ipython",
        "JUPYTER_CONFIG_DIR": "jupyter/config",
        "JUPYTER_DATA_DIR": "jupyter/data",
        "JUPYTER_RUNTIME_DIR": "jupyter/runtime",
        "MPLCONFIGDIR": "cache/matplotlib",
        "TORCHINDUCTOR_CACHE_DIR": "cache/torchinductor",
        "TORCH_HOME": "cache/torch",
        "TRITON_CACHE_DIR": "cache/triton",
        "XDG_CACHE_HOME": "cache",
    }
    for variable, folder in folders.items():
        env[variable] = str(build / folder)
    env.update(ORT_DISABLE_TELEMETRY="1", RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1")
    venv = ROOT / ".venv"
    if venv.exists():
        env["PATH"] = os.path.dirname(venv_tool(venv, "python")) + os.pathsep + env.get("PATH", "")
        env["VIRTUAL_ENV"] = str(venv)
    env.pop("PYTHONHOME", None)
    return env


def call(*command):
    """Run a tool of ``.venv`` on the terminal; its exit code."""
    (ROOT / "build").mkdir(exist_ok=True)
    process = subprocess.Popen([str(part) for part in command], env=contained(os.environ), cwd=str(ROOT))
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the tool got it too and ends in its own way
            continue


def has_display(environ=os.environ, system=None):
    """Whether a browser can be opened for the user: not over SSH, and on Linux only with a graphical session."""
    if environ.get("SSH_CONNECTION") or environ.get("SSH_TTY"):
        return False
    if (system or platform.system()) != "Linux":
        return True
    return bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))


def lab_command(python, browser, port=None):
    """JupyterLab on the first lab. A taken port moves on to the next; nothing is asked of any server but this one."""
    command = [
        *(str(python), "-m", "jupyterlab", "--ServerApp.root_dir=" + str(ROOT)),
        "--LabApp.default_url=/lab/tree/labs/00_start_here.ipynb",
        "--ServerApp.answer_yes=True",  # Ctrl-C ends it without a question
        "--ServerApp.port_retries=50",
        "--ServerApp.log_level=WARN",  # leaves the URL, and what goes wrong
        "--LanguageServerManager.autodetect=False",  # it would run npm, which writes to the home folder
        "--LabApp.extension_manager=readonly",  # the other one lists packages from the network
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    if port:
        command.append(f"--ServerApp.port={port}")
    if not browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    return command


def quiet_jupyterlab():
    """JupyterLab asks at its first start whether it may fetch news; answer no for this environment."""
    settings = ROOT / ".venv" / "share" / "jupyter" / "lab" / "settings"
    settings.mkdir(parents=True, exist_ok=True)
    answer = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
    (settings / "overrides.json").write_text(json.dumps(answer, indent=2) + "\n")


def web(environment, options):
    """The web page of lab 04, where Node.js is installed (``tools/web_page.py``)."""
    environment.ensure()
    return subprocess.call([str(environment.python), str(ROOT / "tools" / "web_page.py")])


def lab(environment, options):
    web(environment, options)  # it says what is missing; the course starts all the same
    quiet_jupyterlab()
    browser = not options.no_browser and has_display()
    if not browser:
        say("No browser is opened here: open the URL printed below (over SSH, forward its port first). Ctrl-C ends it.")
    return call(*lab_command(environment.python, browser, options.port))


def servers(environment, options):
    """The model servers that need an environment of their own, for lab 05 (``tools/side_env.py``)."""
    environment.ensure()
    return subprocess.call([str(environment.python), str(ROOT / "tools" / "side_env.py"), "labs"])


def native(environment, options):
    """ncnn's C++ library for the program of lab 22, where there is a compiler (``tools/ncnn_library.py``)."""
    environment.ensure()
    return subprocess.call([str(environment.python), str(ROOT / "tools" / "ncnn_library.py")])


def boards(environment, options):
    """Emulated Raspberry Pi and Jetson CPUs for labs 40 and 41, in the user's cache folder (``deploylab boards``)."""
    environment.ensure()
    return subprocess.call([str(environment.python), "-m", "deploylab.cli", "boards", "create", "all"])


def bundles(environment):
    """Small bundles, whose packages the tests install without a network: a Raspberry Pi's and this machine's."""
    codes = []
    for target, *options in (["aarch64-pi"], ["x86_64", "--light"]):
        bundle = [
            environment.python,
            "-m",
            "deploylab.cli",
            "bundle",
            "--target",
            target,
            "--engines",
            "ncnn",
            *options,
        ]
        codes.append(call(*bundle, "--to", ROOT / ".envs" / "bundles" / target))
    return max(codes, key=abs)


def test(environment, options):
    environment.ensure(ALL_EXTRAS)
    web(environment, options)
    native(environment, options)  # it says what is missing; lab 22 then skips its C++ program
    if servers(environment, options) != 0:
        say("Lab 05 skips what it cannot start, and says so; `make servers` tries again.")
    if subprocess.call([str(environment.python), str(ROOT / "tools" / "side_env.py"), "tests"]) != 0:
        say("The tests skip the versions of TensorRT that they cannot have, and say so.")
    if boards(environment, options) != 0:
        say("What runs on emulated boards is skipped, and says so; `make boards` tries again.")
    if bundles(environment) != 0:
        say("The tests skip the installation of bundles, and say so.")
    pytest = [environment.python, "-m", "pytest"]
    sanitize = "--nbval-sanitize-with=tests/nbval_sanitize.cfg"
    notebooks = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=120", sanitize, "labs"]
    parallel = ["-n", str(test_processes()), "--dist", "loadscope"]
    codes = [call(*pytest, *parallel, "tests"), call(*pytest, *parallel, *notebooks)]
    return max(codes, key=abs)


def test_processes():
    """Two more than there are cores, as tests also wait, but not so many that memory gets short."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores, 1) + 2, 4)


def tour(environment, options, *more):
    """Doctor, then one model through every engine. ``more`` are further options of the comparison."""
    environment.ensure()
    deploylab = [environment.python, "-m", "deploylab.cli"]
    sample = sorted((ROOT / "datasets" / "signs" / "samples").glob("*.jpg"))[0]
    compare = ["compare", "signnet", "--threads", "1", "--image", sample, "--html", ROOT / "build" / "tour.html"]
    return call(*deploylab, "doctor") or call(*deploylab, *compare, *more)


def setup(environment, options):
    environment.ensure(ALL_EXTRAS if options.all else ())
    web(environment, options)
    return 0


def format_code(environment, options):
    environment.ensure(ALL_EXTRAS)
    ruff = [environment.python, "-m", "ruff"]
    return call(*ruff, "format") or call(*ruff, "check", "--fix")


def lint(environment, options):
    environment.ensure(ALL_EXTRAS)
    ruff = [environment.python, "-m", "ruff"]
    return call(*ruff, "format", "--check") or call(*ruff, "check")


LOCK_HEADER = """\
# Exact versions of every package, for Python 3.10-3.13 and all extras. Made by `make lock`; do not edit.
"""


def lock(environment, options):
    """Compile constraints.txt from pyproject.toml; ``--upgrade`` takes the newest versions."""
    environment.ensure()
    settings = pip_settings(environment.python)
    for name in ("find-links", "extra-index-url"):  # wheels of one machine, as a CPU torch, must not enter the lock
        settings.pop(name, None)
    env = uv_environment(settings, {name: value for name, value in os.environ.items() if not name.startswith("UV_")})
    target, draft = ROOT / "constraints.txt", ROOT / "build" / "constraints.txt"
    draft.parent.mkdir(exist_ok=True)
    if target.exists() and not options.upgrade:
        draft.write_text(target.read_text())
    elif draft.exists():
        draft.unlink()
    quiet = ["--quiet", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    command = [
        venv_tool(environment.venv, "uv"),
        "pip",
        "compile",
        "--universal",
        "--python-version",
        "3.10",
        "--all-extras",
    ]
    run_step(
        "Resolving for all Pythons and platforms", [*command, *quiet, ROOT / "pyproject.toml", "-o", draft], env=env
    )
    target.write_text(LOCK_HEADER + "\n".join(shortened(draft.read_text().splitlines())) + "\n")
    for folder in (ROOT / "hardware", ROOT / "hardware" / "bundle"):
        lock_for_boards(folder, venv_tool(environment.venv, "uv"), quiet, env)
    return 0


def lock_for_boards(folder, uv, quiet, env):
    """Compile the folder's requirements.txt: the versions of constraints.txt, with the hashes of all wheels."""
    draft, left_out = ROOT / "build" / "requirements.txt", ROOT / "build" / "left_out.txt"
    left_out.write_text("openvino-telemetry; python_version < '3'\n")  # as in pyproject.toml
    command = [uv, "pip", "compile", "--no-config", "--universal", "--python-version", "3.10", "--generate-hashes"]
    wanted = [folder / "requirements.in", "-c", ROOT / "constraints.txt", "--override", left_out, "-o", draft]
    run_step(f"Resolving for {folder.relative_to(ROOT)}", [*command, *quiet, *wanted], env=env)
    header = "# What requirements.in asks for, with the hashes of all wheels. Made by `make lock`; do not edit.\n"
    (folder / "requirements.txt").write_text(header + draft.read_text())


def shortened(lines):
    """Drop what every marker repeats. A package with one version needs no marker at all in a constraints file."""
    names = [re.split(r"[=\s;]", line)[0] for line in lines]
    for name, line in zip(names, lines):
        requirement, _, marker = line.partition(" ; ")
        if names.count(name) == 1 or not marker:
            yield requirement
            continue
        marker = marker.replace("python_full_version < '3.14' and ", "")
        marker = marker.replace(" and platform_python_implementation == 'CPython'", "")
        platforms = (
            "((platform_machine == 'arm64' and sys_platform == 'darwin')"
            " or (platform_machine == 'aarch64' and sys_platform == 'linux')"
            " or (platform_machine == 'x86_64' and sys_platform == 'linux')"
            " or (platform_machine == 'AMD64' and sys_platform == 'win32'))"
        )
        yield requirement + " ; " + marker.replace(" and " + platforms, "").replace(platforms + " and ", "")


def clean(environment, options):
    for folder in [ROOT / "build", ROOT / ".pytest_cache", ROOT / ".ruff_cache", ROOT / ".hypothesis"]:
        shutil.rmtree(str(folder), ignore_errors=True)
    for cache in ("__pycache__", ".ipynb_checkpoints"):
        for part in ("utils", "tests", "tools", "labs", "benchmarks"):
            for folder in list((ROOT / part).rglob(cache)):
                shutil.rmtree(str(folder), ignore_errors=True)
    say("Removed build/ and caches; .venv stays (make distclean removes it too).")
    return 0


def distclean(environment, options):
    clean(environment, options)
    if environment.venv.exists():
        remove_folder(environment.venv)
        say("Removed .venv.")
    modules = ROOT / "labs" / "web" / "node_modules"
    if modules.exists():
        remove_folder(modules)
        say("Removed labs/web/node_modules.")
    if (ROOT / ".envs").exists():
        remove_folder(ROOT / ".envs")
        say("Removed .envs.")
    return 0


COMMANDS = {
    "lab": (lab, "set up the core and open the course in JupyterLab"),
    "test": (test, "set up everything and run every test and every notebook"),
    "tour": (tour, "doctor, then one model through every engine, without a browser (one to two minutes)"),
    "setup": (setup, "set up the core, or with --all everything"),
    "web": (web, "build the web page of lab 04 (needs Node.js)"),
    "native": (native, "build ncnn's C++ library for lab 22 (needs a C++ compiler and CMake)"),
    "boards": (boards, "make the emulated boards of labs 40 and 41 (needs Debian or Ubuntu; 600 MB)"),
    "servers": (servers, "set up the model servers of lab 05 that need an environment of their own"),
    "format": (format_code, "format and fix code and notebooks"),
    "lint": (lint, "check format and code"),
    "lock": (lock, "compile constraints.txt from pyproject.toml"),
    "clean": (clean, "remove build/ and caches"),
    "distclean": (distclean, "clean, and remove .venv"),
}


def parse(arguments):
    parser = argparse.ArgumentParser(description="Set up and run DeployLab.")
    parser.add_argument("--python", help="the interpreter to build .venv from (Python 3.10 to 3.13)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True
    for name, (_, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name == "lab":
            command.add_argument("--port", type=int, help="first port to try (default 8888)")
            command.add_argument("--no-browser", action="store_true", help="only print the URL")
        if name == "setup":
            command.add_argument("--all", action="store_true", help="with all extras")
        if name == "lock":
            command.add_argument("--upgrade", action="store_true", help="take the newest versions")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    try:
        return COMMANDS[options.command][0](Environment(asked_python=options.python), options)
    except SetupError as error:
        print(f"\nSet-up stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again; it starts where it must.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
