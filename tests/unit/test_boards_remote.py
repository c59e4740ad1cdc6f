"""Boards over SSH: a real OpenSSH server on loopback, behind it this machine or the emulated board."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import engine_nets as nets
import numpy as np
import psutil
import pytest
import ssh_server
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from deploylab import cli, report
from deploylab.bench.compare import compare
from deploylab.boards import emulator, halt, index, onboard, places, probe, remote, ssh
from deploylab.boards.ssh import Address
from deploylab.cli import app
from deploylab.errors import BoardError, BoardLost, InputError

PYTHON = Path(sys.executable)
QUICK = {"samples": 9, "rounds": 3, "memory": False}
SURVEY = {"machine": "aarch64", "bits": 64, "system": "Linux", "libc": ["glibc", "2.36"], "python": "3.11.2"}

needs_server = pytest.mark.skipif(bool(ssh_server.missing()), reason=ssh_server.missing() or "there is a server")
posix = pytest.mark.skipif(os.name != "posix", reason="boards run Linux")


# --- without a board --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target", "port"),
    [
        ("pi@pi4.local", "pi@pi4.local", None),
        ("pi@10.0.0.7:2222", "pi@10.0.0.7", 2222),
        ("workshop-3", "workshop-3", None),
        ("pi@[fe80::1%eth0]:22", "pi@fe80::1%eth0", 22),
    ],
)
def test_an_address(text, target, port):
    assert Address.parse(text) == Address(target, port)


@pytest.mark.parametrize("text", ["", "pi@", "@pi4", "-oProxyCommand=x", "a@-oProxy", "pi@pi4:0", "pi4:70000", "a b"])
def test_what_is_no_address_says_what_to_give(text):
    with pytest.raises(InputError, match="ssh:USER@HOST"):
        Address.parse(text)


@given(st.text())
def test_no_address_can_be_an_option_of_ssh(text):
    with contextlib.suppress(InputError):
        target = Address.parse(text).target
        assert not target.startswith("-")
        assert not set(target) & set(" \t\n\"'`$;|&")


def test_every_python_of_a_board_gets_one_version_of_each_package():
    for python in ("3.10.12", "3.11.2", "3.12.3", "3.13.5"):
        names = [pin.name for pin in index.pins() if pin.holds(python)]
        assert {"numpy", "pillow", "onnxruntime", "ncnn", "mnn", "openvino"} <= set(names)
        assert len(names) == len(set(names))
    assert all("--hash=sha256:" in pin.text and ";" not in pin.text for pin in index.pins())


@pytest.mark.parametrize(
    ("departing", "message"),
    [
        ({"machine": "armv7l", "bits": 32}, "32-bit system on armv7l.*64-bit"),
        ({"bits": 32}, "32-bit system on aarch64, and only its kernel is 64-bit"),
        ({"system": "Darwin"}, "runs Darwin"),
        ({"libc": ["", ""]}, "no GNU C library"),
        ({"python": "3.9.2"}, r"Python 3\.9\.2; DeployLab needs 3\.10 or later there: install a newer system"),
        ({"python": "3.6.9", "l4t": "# R32 (release), REVISION: 7.1, GCID: 1"}, r"JetPack 4.*uv python install 3\.10"),
        ({"python": "3.8.10", "l4t": "# R35 (release), REVISION: 4.1"}, r"JetPack 5\).*hardware/jetson/README\.md"),
    ],
)
def test_a_machine_that_cannot_run_the_engines_is_told_apart(departing, message):
    remote.check(SURVEY, "pi")
    with pytest.raises(BoardError, match=message):
        remote.check({**SURVEY, **departing}, "pi")


def test_wheels_are_taken_for_the_boards_c_library():
    assert not {"manylinux_2_36_aarch64"} & set(index.platforms("aarch64", 35))
    assert {"manylinux_2_35_aarch64", "manylinux_2_17_aarch64"} <= set(index.platforms("aarch64", 35))


def test_what_runs_on_the_board_alone_needs_an_old_python_only():
    source = Path(onboard.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= sys.stdlib_module_names


def test_the_copy_of_the_code_has_no_caches():
    with remote._archive(list(remote._code())) as file, tarfile.open(fileobj=file) as archive:
        names = archive.getnames()
    assert "utils/deploylab/bench/worker.py" in names
    assert "hardware/requirements.txt" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("/", ".."))]


def test_remarks_tell_what_held_a_board_back():
    before = {"governor": "ondemand", "throttling": {"now": [], "since_start": ["under-voltage"]}}
    after = {"throttling": {"now": ["throttled"], "since_start": ["throttled", "under-voltage"]}}
    held_back, governor = remote.remarks(before, after)
    assert held_back.endswith(": throttled")
    assert "ondemand" in governor
    assert remote.remarks({"governor": "performance"}, {}) == []


def test_the_sensors_fit_in_a_line():
    before = {"governor": "ondemand", "power_mode": "15W", "celsius": {"cpu": 41.25}}
    after = {"celsius": {"cpu": 63.0}, "throttling": {"now": ["throttled"], "since_start": ["throttled"]}}
    assert report.readings({"before": before, "after": after}) == (
        "governor ondemand; power mode 15W; cpu 41.2 -> 63.0 °C; after: throttled"
    )
    assert report.readings({}) == ""


def test_the_probe_reads_what_is_here():
    found = probe.report()
    assert found["machine"]["architecture"]
    assert found["engines"]["onnxruntime"]


@posix
def test_a_guard_that_hears_nothing_ends_the_workers_and_itself(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [
        str(PYTHON),
        "-c",
        ssh._program({"do": "guard", "lease_s": 0.5, "packages": ["numpy", "no-such"], "client": "me"}),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as guard:
        survey = ssh._answer_in(guard.stdout.readline().decode())
        assert survey["installed"] == {"numpy": np.__version__}
        pids = Path(survey["run"]) / "pids"
        script = f"echo $$ >{pids}/$$; sleep 600; true"
        worker = subprocess.Popen(["sh", "-c", script], start_new_session=True)
        (pids / "1").touch()  # a number that is not one of ours by now
        assert guard.wait(60) == 0  # its input is still open
        assert worker.wait(60) == -signal.SIGKILL
    assert not Path(survey["run"]).exists()


@posix
def test_what_a_dead_run_left_is_removed_whatever_the_clock_says(tmp_path):
    folder = tmp_path / "deploylab" / "board"
    dead = folder / "runs" / "1-gone"
    (dead / "pids").mkdir(parents=True)
    unfinished = folder / "code-1.unfinished-1"
    unfinished.mkdir()
    forgotten, recent = folder / "code-1", folder / "runtime-1"
    forgotten.mkdir()
    worker = subprocess.Popen(["sh", "-c", f"cd {dead}; sleep 600; true"], start_new_session=True)
    (dead / "pids" / str(worker.pid)).touch()
    with _guard(tmp_path, "me") as survey:
        assert worker.wait(60) == -signal.SIGKILL
        assert not dead.exists()
        assert not unfinished.exists()
        assert (forgotten.exists(), survey["others"]) == (True, 0)
        recent.mkdir()
        for path, date in ((survey["run"], 0), (forgotten, 0), (recent, 4e9)):
            os.utime(path, (date, date))
        with _guard(tmp_path, "me") as again, _guard(tmp_path, "another") as foreign:
            assert (again["others"], foreign["others"]) == (0, 2)
            assert Path(survey["run"]).exists()  # a clock that jumps ages it, but it is in use
            assert forgotten.exists()
    with _guard(tmp_path, "me"):
        assert not forgotten.exists()
        assert recent.exists()
    assert not list((folder / "runs").iterdir())


@contextlib.contextmanager
def _guard(cache, client):
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    order = {"do": "guard", "lease_s": 60.0, "packages": [], "client": client}
    command = [str(PYTHON), "-S", "-c", ssh._program(order)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as guard:
        yield ssh._answer_in(guard.stdout.readline().decode())
        guard.stdin.close()
        assert guard.wait(60) == 0


@posix
def test_sockets_of_a_process_that_was_killed_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(ssh, "_short_folder", lambda: str(tmp_path))
    folders = {name: tmp_path / f"{ssh._PREFIX}{name}" for name in ("dead", "alive", "empty", "new")}
    with contextlib.ExitStack() as sockets:
        for name, folder in folders.items():
            folder.mkdir()
            if name in ("dead", "alive"):
                server = sockets.enter_context(socket.socket(socket.AF_UNIX))
                server.bind(os.path.relpath(folder / "s"))
                server.listen() if name == "alive" else server.close()
            if name != "new":
                os.utime(folder, (0, 0))
        ssh._sweep()
    assert sorted(name for name, folder in folders.items() if folder.exists()) == ["alive", "new"]


def test_a_halt_ends_what_runs_and_what_starts():
    wish = halt.Halt()
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    with wish.here():
        threading.Timer(0.2, wish.ask).start()
        assert halt.run(sleep).returncode
        assert halt.run(sleep).returncode
    assert halt.run([sys.executable, "-c", "print(input('?'))"]).stdout == "?"  # there is nobody to ask


@posix
def test_a_broken_or_cut_off_archive_leaves_nothing(tmp_path):
    target = tmp_path / "there"
    for content in (b"", b"nonsense", _packed(tmp_path)[:-200]):
        command = [str(PYTHON), "-c", ssh._program({"do": "receive", "to": str(target)})]
        done = subprocess.run(command, input=content, stdout=subprocess.PIPE)
        assert "error" in ssh._answer_in(done.stdout.decode())
        assert not list(tmp_path.glob("there*"))


def _packed(folder: Path) -> bytes:
    (folder / "file").write_bytes(os.urandom(4096))
    with remote._archive([(folder / "file", "file")]) as archive:
        return archive.read()


# --- over SSH ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = ssh_server.Server(tmp_path_factory.mktemp("sshd"))
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def board(server, tmp_path, monkeypatch):
    """This machine as a board with a home of its own."""
    home = tmp_path / "its home"
    home.mkdir()
    monkeypatch.setenv("DEPLOYLAB_SSH", server.config("user"))
    _behave(server, home, "/bin/sh", "-c")
    yield home
    server.know((server.folder / "host.pub").read_text())
    assert_nothing_left(home)


def _behave(server, home, *command, path=f"{PYTHON.parent}:/usr/bin:/bin", around=()):
    server.runs(*around, "env", "-i", f"HOME={home}", f"PATH={path}", *command)


def assert_nothing_left(home, client=""):
    """Nothing on the board, or nothing of this client, whose name is part of all it does there."""
    runs = home / ".cache" / "deploylab" / "board" / "runs"
    for _ in range(600):
        left = ssh_server.processes_naming(client or str(home)), list(runs.glob(f"*{client}"))
        if not any(left):
            return
        time.sleep(0.1)
    pytest.fail(f"left on the board: {left}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return nets.matrix_product(tmp_path_factory.mktemp("model"))


def _compare(model, place, folder, **options):
    paths = {"out_dir": folder / "artifacts", "ledger_path": folder / "ledger.jsonl"}
    return compare(model, place=place, **{"engines": ["onnxruntime"], **QUICK, **paths, **options})


@needs_server
def test_the_whole_way_to_a_board_and_back(server, board, model, tmp_path):
    def look(done, total, step):
        if "round" in step:
            there.extend(ssh_server.processes_naming(f"{board}/.cache/deploylab/board/code-"))

    steps, there = [], []
    with places.place(f"ssh:{server.address}", steps.append) as place:
        found = _compare(model, place, tmp_path, memory=True, progress=look)
    (row,) = found.rows
    assert row.ok, row.reason
    assert row.latency.n >= 9
    assert row.memory.loaded > 0
    assert row.cold_start.n == 2
    assert "before" in found.machine["sensors"]
    assert server.address in found.place
    assert any("SSH" in note for note in found.notes)
    assert any("sending DeployLab's code" in step for step in steps)
    assert any("deploylab.bench.worker" in line for line in there)
    assert not ssh_server.processes_naming(f"{server.folder}/ssh_config")


@needs_server
def test_a_crash_costs_its_row_and_a_lost_connection_keeps_what_was_measured(server, board, model, tmp_path):
    def crash():
        (shell,) = _workers(board)
        shell.children()[0].send_signal(signal.SIGILL)

    with places.place(f"ssh:{server.address}") as place:
        crashed = _compare(model, place, tmp_path, progress=_when("round 2", crash))
        assert place.probe()["engines"]
        found = _compare(model, place, tmp_path, rounds=6, memory=True, progress=_when("round 3", server.cut))
        assert_nothing_left(board)
        at_once = _compare(model, place, tmp_path)
        with pytest.raises(BoardLost, match="was lost"):
            place.probe()
    assert crashed.rows[0].status == "crashed"
    assert "SIGILL" in crashed.rows[0].reason
    assert ([row.status for row in at_once.rows], at_once.measured) == (["lost"], [])
    (row,) = found.rows
    assert row.status == "lost"
    assert f"the connection to {server.address} was lost" in row.reason
    assert row.verdict.ok
    assert row.latency.n > 0
    assert len(row.round_p50) == 2
    assert any("after 2 of 6 rounds" in note for note in row.notes)
    assert found.machine["sensors"]["after"] == {}
    console = Console(record=True, width=200, file=None)
    report.print_comparison(found, console)
    assert "lost: the connection" in console.export_text()


def _when(words, act):
    """A hearer of progress that does something when it hears of a step."""
    return lambda done, total, step: act() if words in step else None


def _workers(home):
    """The shells on the board that started workers."""
    found = [(each, " ".join(each.info["cmdline"] or ())) for each in psutil.process_iter(["cmdline"])]
    return [each for each, line in found if str(home) in line and line.startswith("/bin/sh -c cd ")]


@needs_server
@pytest.mark.parametrize(
    ("mischief", "message"),
    [
        ("stranger", r"does not accept your key.*ssh-copy-id -p \d+"),
        ("gate", r"no connection to behind: \S+@127\.0\.0\.1 does not accept your key"),
        ("unknown", r"host key is not known here yet.*compare the fingerprint"),
        ("changed", r"not the one you have known.*ssh-keygen -R"),
    ],
)
def test_keys_that_do_not_fit(server, board, monkeypatch, mischief, message):
    if mischief in ("stranger", "gate"):
        keys = ("stranger",) if mischief == "stranger" else ("user", "stranger")
        monkeypatch.setenv("DEPLOYLAB_SSH", server.config(*keys))
    else:
        server.know(*([(server.folder / "stranger.pub").read_text()] if mischief == "changed" else []))
    try:
        with pytest.raises(BoardError, match=message):
            places.place("ssh:behind" if mischief == "gate" else f"ssh:{server.address}")
    finally:
        server.config("user")


@needs_server
@pytest.mark.parametrize("way", ["behind", "[::1]:{port}"])
def test_a_jump_on_the_way_and_ipv6(server, board, way):
    if "::" in way and not ssh_server.has_ipv6():
        pytest.skip("this machine has no IPv6")
    with contextlib.closing(ssh.Connection(Address.parse(way.format(port=server.port)), [])) as connection:
        assert connection.run("echo here") == "here\n"


@needs_server
def test_a_board_where_nobody_listens(board):
    with pytest.raises(BoardError, match="nothing listens there"):
        places.place(f"ssh:pi@127.0.0.1:{ssh_server._free_port()}")


def test_without_a_client_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("DEPLOYLAB_SSH", "no-such-ssh-client")
    with pytest.raises(BoardError, match=r"cannot start no-such-ssh-client.*install OpenSSH's client"):
        places.place("ssh:pi@pi4")


@needs_server
def test_a_board_without_python(server, board):
    _behave(server, board, "/bin/sh", "-c", path="/nowhere")
    with pytest.raises(BoardError, match="no python3; install it"):
        places.place(f"ssh:{server.address}")


@needs_server
@pytest.mark.parametrize(
    ("version", "message"), [((3, 8, 10), r"Python 3\.8\.10; DeployLab needs 3\.10"), ((3, 5, 2), r"older than 3\.6")]
)
def test_an_old_python_is_refused_unless_a_newer_one_lies_beside_it(server, board, version, message):
    own = board / ".local" / "bin"
    _pretend_python(board / "bin" / "python3", version)
    _behave(server, board, "/bin/sh", "-c", path=str(board / "bin"))
    with pytest.raises(BoardError, match=message):
        places.place(f"ssh:{server.address}")
    own.mkdir(parents=True)
    (own / "python3.12").symlink_to(PYTHON)
    with contextlib.closing(ssh.Connection(Address.parse(server.address), [])) as connection:
        assert connection.survey["executable"] == str(own / "python3.12")


def _pretend_python(path, version):
    """A Python that says it has this version."""
    text = ".".join(map(str, version))
    told = f"sys.version_info = {(*version, 'final', 0)}; platform.python_version = lambda: '{text}'"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {PYTHON} -c "import platform, sys; {told}; exec(sys.argv[1])" "$2"\n')
    path.chmod(0o755)


@needs_server
def test_start_files_that_print_are_named(server, board):
    _behave(server, board, "/bin/sh", "-c", 'echo "Welcome to pi"; exec /bin/sh -c "$0"')
    with pytest.raises(BoardError, match=r"start files.*Welcome to pi"):
        places.place(f"ssh:{server.address}")


@needs_server
def test_a_32_bit_system_is_refused(server, board):
    _behave(server, board, "setarch", "i686", "/bin/sh", "-c")
    with pytest.raises(BoardError, match="64-bit system on i686"):
        places.place(f"ssh:{server.address}")


@needs_server
def test_a_full_disk_is_told_with_the_space_that_is_left(server, board, model, small_disk, tmp_path):
    def on_it(*command):
        return subprocess.run([*small_disk, *command], capture_output=True, text=True).stdout

    _behave(server, board, "/bin/sh", "-c", around=small_disk)
    fill = ("sh", "-c", 'head -c 9000000 /dev/zero >"$0"', str(board / "photos"))
    on_it(*fill)
    with pytest.raises(BoardError, match=r"cannot write .*code-.*No space left on device.*MB are free.*free some"):
        places.place(f"ssh:{server.address}")
    assert on_it("ls", str(board / ".cache/deploylab/board")) == "runs\n"
    on_it("rm", str(board / "photos"))
    with places.place(f"ssh:{server.address}") as place:
        on_it(*fill)
        found = _compare(model, place, tmp_path)
        assert "onnxruntime" not in on_it("ls", "-R", place._survey["run"])
    assert found.rows[0].status == "failed"
    assert "No space left on device" in found.rows[0].reason


@pytest.fixture
def small_disk(board):
    """The command that a program runs under for which the board's home is a disk of 8 MB."""
    script = 'mount -t tmpfs -o size=8m none "$0" && echo mounted && exec cat'
    command = ["unshare", "-Urm", "sh", "-c", script, str(board)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip(f"no file system of one's own here: {holder.stderr.read().decode()}")
        yield ["nsenter", "-t", str(holder.pid), "-U", "-m", "--preserve-credentials"]
        holder.stdin.close()


@needs_server
def test_a_home_that_cannot_be_written_is_named(server, board):
    (board / ".cache").write_text("")
    with pytest.raises(BoardError, match=r"cannot write to .*home.*\.cache"):
        places.place(f"ssh:{server.address}")
    (board / ".cache").unlink()


@needs_server
def test_packages_that_a_board_lacks_are_sent_once_and_one_without_a_wheel_is_left_out(
    server, board, model, monkeypatch, tmp_path
):
    def install(requirements, folder, *, machine, python, glibc):
        wanted = requirements.read_text().split()
        downloads.append((wanted, machine, python, glibc))
        if "ncnn==9.0" in wanted:
            raise index.NoWheel("ncnn==9.0", "the package index has no wheel of ncnn==9.0")
        folder.mkdir()
        (folder / "only_there.py").write_text("print('it is here')\n")

    downloads = []
    monkeypatch.setenv("DEPLOYLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "install", install)
    pins = [index.Pin("only-there", "1.0", "only-there==1.0", ""), index.Pin("ncnn", "9.0", "ncnn==9.0", "")]
    monkeypatch.setattr(index, "pins", lambda: pins)
    python = _python_with(board / "env", "numpy", "PIL", "pillow", "onnxruntime", "flatbuffers", "packaging", "google")
    _behave(server, board, "/bin/sh", "-c", path=f"{python}:/usr/bin:/bin")
    away = f"ssh:pi@127.0.0.1:{ssh_server._free_port()}"
    probed = CliRunner().invoke(app, ["boards", "probe", away, f"ssh:{server.address}"])
    assert probed.exit_code == 1, probed.output
    assert f"error: {away}: no connection" in probed.stderr
    assert "no wheel of ncnn==9.0 for it: left out" in probed.stderr
    assert "usable core(s)" in probed.stdout
    with places.place(f"ssh:{server.address}") as place:
        assert "it is here" in place._connection.run(f"{place._python} -c 'import only_there'")
        assert {"onnxruntime", "ncnn"} == set(place.engines())
        found = _compare(model, place, tmp_path, engines=None)
    first, second = downloads
    assert (first[0], second[0]) == (["only-there==1.0", "ncnn==9.0"], ["only-there==1.0"])
    assert second[1:3] == (os.uname().machine, "{}.{}".format(*sys.version_info))
    assert second[3] >= 17
    assert {row.engine: row.status for row in found.rows} == {"onnxruntime": "ok", "ncnn": "unavailable"}
    assert re.search(r"ncnn 9\.0 has no wheel for Python \S+ and glibc", found.row("ncnn").reason)
    assert any("eager" in note and "left out" in note for note in found.notes)


def _python_with(folder, *packages):
    """A folder of programs with a Python that has these packages of ours only."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (own,) = folder.glob("lib/python3*/site-packages")
    for path in Path(np.__file__).parents[1].iterdir():
        if re.match(f"({'|'.join(packages)})([.-]|$)", path.name, re.IGNORECASE):
            (own / path.name).symlink_to(path)
    return folder / "bin"


@needs_server
def test_a_comparison_that_is_killed_leaves_nothing_on_the_board(server, board):
    program = (
        "import time\nfrom deploylab.bench.client import Worker\nfrom deploylab.boards import places\n"
        f"with places.place('ssh:{server.address}') as place, Worker(command=place.command('ncnn', 1)):\n"
        "    print('ready', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as lab:
        try:
            assert lab.stdout.readline() == b"ready\n"
            assert ssh_server.processes_naming(f"{board}/.cache")
        finally:
            lab.kill()
    assert_nothing_left(board)
    for _ in range(600):
        if not (here := ssh_server.processes_naming(f"{server.folder}/ssh_config")):
            return
        time.sleep(0.1)
    pytest.fail(f"left here: {here}")


@needs_server
def test_ctrl_c_ends_everything_and_keeps_what_was_measured(server, board, model, tmp_path):
    boards = [server.address, server.address.replace("127.0.0.1", "localhost")]  # the same machine: one waits
    command = [sys.executable, "-m", "deploylab.cli", "compare", str(model), "--engines", "onnxruntime"]
    command += [part for each in boards for part in ("--on", f"ssh:{each}")]
    command += ["--rounds", "200", "--max-seconds", "500", "--samples", "10000000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as lab:
        watchdog = threading.Timer(240, lab.kill)
        watchdog.start()
        said = ""
        for line in lab.stderr:
            said += line
            if "round 2" in line:
                lab.send_signal(signal.SIGINT)
                break
        shown, rest = lab.communicate()
        watchdog.cancel()
    said += rest
    assert lab.returncode == 130, said
    assert "interrupted: workers ended, also those on boards" in said
    assert "waits, it is the same machine as another of these boards" in said
    assert "Traceback" not in said
    text = " ".join(shown.split())
    assert re.search(r"it was interrupted after \d+ of 200 rounds", text), text
    assert text.count("interrupted: by the user; what ran on") == 2
    assert_nothing_left(board)


@needs_server
def test_boards_are_measured_at_the_same_time_and_this_machine_alone(server, board, model, monkeypatch, tmp_path):
    def meet(where, done, total, step):
        if where.startswith("ssh:") and "round 1" in step:
            both.wait(240)  # in vain if they were measured one after the other
        told(where, done, total, step)

    both, told = threading.Barrier(2), cli._tell_in_a_line
    monkeypatch.setattr(cli, "_tell_in_a_line", meet)
    monkeypatch.setattr(remote.Remote, "machine", property(lambda self: self.name))  # as if there were two
    away = f"ssh:pi@127.0.0.1:{ssh_server._free_port()}"
    boards = [f"ssh:{server.address}", f"ssh:{server.address.replace('127.0.0.1', 'localhost')}"]
    on = [part for each in ("here", boards[0], away, boards[1]) for part in ("--on", each)]
    quick = ["--samples", "9", "--rounds", "2", "--no-memory", "--engines", "onnxruntime"]
    done = CliRunner().invoke(app, ["compare", str(model), *on, *quick, "--json", str(tmp_path / "rows.json")])
    assert done.exit_code == 1, done.output
    assert f"error: {away}: no connection" in done.stderr
    assert "p50 in ms, or instructions" in done.stdout
    found = [json.loads(path.read_text()) for path in tmp_path.glob("rows-*.json")]
    assert [each["rows"][0]["status"] for each in found] == 3 * ["ok"]
    assert not any("another comparison" in note for each in found for note in each["notes"])
    lines = done.stderr.splitlines()
    (begin,) = (number for number, line in enumerate(lines) if "here: " in line and "checking" in line)
    assert all(any(line.startswith(f"{each}: ") and "done" in line for line in lines[:begin]) for each in boards)


@needs_server
def test_an_emulated_board_over_ssh(server, board, model, tmp_path):
    def cut(done, total, step):
        if "memory" in step:
            server.cut()

    try:
        pi4 = emulator.find("pi4")
    except BoardError as error:
        pytest.skip(str(error))
    server.runs(*pi4.shell("/bin/sh", "-c"))  # its home stays, so that Python compiles DeployLab there but once
    with places.place(f"ssh:{server.address}") as place:
        found = _compare(model, place, tmp_path)
        interrupted = _compare(model, place, tmp_path, memory=True, progress=cut)
        assert "onnxruntime" in place.engines()
        assert "eager" not in place.engines()
    assert_nothing_left(pi4.folder, ssh._CLIENT)
    (row,) = found.rows
    assert row.ok, row.reason
    assert row.verdict.ok
    assert (found.timed, row.latency) == (False, None)  # its time is none, by whatever way one gets there
    assert (found.machine["architecture"], found.machine["features"]) == ("aarch64", ["asimd"])
    assert found.machine["board"] == "Raspberry Pi 4 Model B (emulated)"
    console = Console(record=True, width=200, file=None)
    report.print_comparison(found, console)
    assert "parity and memory; no board time" in " ".join(console.export_text().split())
    assert "<svg" in report.to_html(found)
    assert interrupted.rows[0].status == "lost"
    assert interrupted.rows[0].verdict.ok
