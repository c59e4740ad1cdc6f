"""Boards over SSH: a real OpenSSH server on loopback, behind it this machine or the emulated board."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import ssh_server
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from typer.testing import CliRunner

from deploylab import report
from deploylab.bench.compare import compare
from deploylab.boards import emulator, index, onboard, places, probe, remote, ssh
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
        ({"bits": 32}, "32-bit system on aarch64"),
        ({"system": "Darwin"}, "runs Darwin"),
        ({"libc": ["", ""]}, "no GNU C library"),
        ({"python": "3.8.10"}, r"Python 3\.8\.10; DeployLab needs 3\.10"),
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


def _behave(server, home, *command, path=f"{PYTHON.parent}:/usr/bin:/bin"):
    server.runs("env", "-i", f"HOME={home}", f"PATH={path}", *command)


def assert_nothing_left(home):
    runs = home / ".cache" / "deploylab" / "board" / "runs"
    for _ in range(600):
        left = ssh_server.processes_naming(str(home)), list(runs.glob("*"))
        if not any(left):
            return
        time.sleep(0.1)
    pytest.fail(f"left on the board: {left}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    weight = numpy_helper.from_array(np.random.default_rng(0).random((12, 4), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _compare(model, place, folder, **options):
    paths = {"out_dir": folder / "artifacts", "ledger_path": folder / "ledger.jsonl"}
    return compare(model, ["onnxruntime"], place=place, **{**QUICK, **paths, **options})


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
def test_a_connection_that_breaks_half_way_keeps_what_was_measured(server, board, model, tmp_path):
    def cut(done, total, step):
        if "round 3" in step:
            server.cut()

    with places.place(f"ssh:{server.address}") as place:
        found = _compare(model, place, tmp_path, rounds=6, memory=True, progress=cut)
        assert_nothing_left(board)
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


@needs_server
def test_a_board_that_is_lost_at_once_says_so(server, board, model, tmp_path):
    with places.place(f"ssh:{server.address}") as place:
        server.cut()
        found = _compare(model, place, tmp_path)
        with pytest.raises(BoardLost, match="was lost"):
            place.probe()
    assert [row.status for row in found.rows] == ["lost"]
    assert found.measured == []


@needs_server
def test_a_worker_that_crashes_on_the_board_costs_its_row_only(server, board, model, tmp_path):
    def crash(done, total, step):
        if "round 2" in step:
            (shell,) = _workers(board)
            shell.children()[0].send_signal(signal.SIGILL)

    with places.place(f"ssh:{server.address}") as place:
        found = _compare(model, place, tmp_path, progress=crash)
        assert place.probe()["engines"]
    assert found.rows[0].status == "crashed"
    assert "SIGILL" in found.rows[0].reason


def _workers(home):
    """The shells on the board that started workers."""
    found = [(each, " ".join(each.info["cmdline"] or ())) for each in psutil.process_iter(["cmdline"])]
    return [each for each, line in found if str(home) in line and line.startswith("/bin/sh -c cd ")]


@needs_server
@pytest.mark.parametrize(
    ("mischief", "message"),
    [
        ("stranger", r"does not accept your key.*ssh-copy-id -p \d+"),
        ("unknown", r"host key is not known here yet.*compare the fingerprint"),
        ("changed", r"not the one you have known.*ssh-keygen -R"),
    ],
)
def test_keys_that_do_not_fit(server, board, monkeypatch, mischief, message):
    if mischief == "stranger":
        monkeypatch.setenv("DEPLOYLAB_SSH", server.config("stranger"))
    else:
        server.know(*([(server.folder / "stranger.pub").read_text()] if mischief == "changed" else []))
    try:
        with pytest.raises(BoardError, match=message):
            places.place(f"ssh:{server.address}")
    finally:
        server.config("user")


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
def test_a_full_disk_is_told_with_the_space_that_is_left(server, board):
    _behave(server, board, "/bin/sh", "-c", 'ulimit -f 20; exec /bin/sh -c "$0"')
    with pytest.raises(BoardError, match=r"cannot write .*code-.*File too large.*MB are free.*free some space"):
        places.place(f"ssh:{server.address}")
    assert [path.name for path in (board / ".cache/deploylab/board").iterdir()] == ["runs"]


@needs_server
def test_a_home_that_cannot_be_written_is_named(server, board):
    (board / ".cache").write_text("")
    with pytest.raises(BoardError, match=r"cannot write to .*home.*\.cache"):
        places.place(f"ssh:{server.address}")
    (board / ".cache").unlink()


@needs_server
def test_packages_that_a_board_lacks_are_sent_once(server, board, monkeypatch, tmp_path):
    def install(requirements, folder, *, machine, python, glibc):
        downloads.append((requirements.read_text(), machine, python, glibc))
        folder.mkdir()
        (folder / "only_there.py").write_text("print('it is here')\n")

    downloads = []
    monkeypatch.setenv("DEPLOYLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote.index, "install", install)
    monkeypatch.setattr(index, "pins", lambda: [index.Pin("only-there", "1.0", "only-there==1.0", "")])
    for _ in range(2):
        with places.place(f"ssh:{server.address}") as place:
            assert "it is here" in place._connection.run(f"{place._python} -c 'import only_there'")
    ((text, machine, python, glibc),) = downloads
    assert (text, machine) == ("only-there==1.0\n", remote._MACHINES[os.uname().machine])
    assert python == "{}.{}".format(*sys.version_info)
    assert glibc >= 17


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


@needs_server
def test_ctrl_c_ends_everything(server, board, model, tmp_path):
    command = [sys.executable, "-m", "deploylab.cli", "compare", str(model), "--engines", "onnxruntime"]
    command += ["--on", f"ssh:{server.address}", "--rounds", "200", "--max-seconds", "500", "--samples", "10000000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as lab:
        watchdog = threading.Timer(240, lab.kill)
        watchdog.start()
        said = ""
        for line in lab.stderr:
            said += line
            if "round 2" in line:
                lab.send_signal(signal.SIGINT)
                break
        said += lab.stderr.read()
        assert lab.wait() == 130, said
        watchdog.cancel()
    assert "interrupted" in said
    assert "Traceback" not in said
    assert_nothing_left(board)


@needs_server
def test_several_boards_in_one_command(server, board, model, tmp_path):
    away = f"pi@127.0.0.1:{ssh_server._free_port()}"
    boards = [f"ssh:{server.address}", f"ssh:{away}", f"ssh:{server.address.replace('@127.0.0.1', '@localhost')}"]
    server.know((server.folder / "host.pub").read_text())
    with server.known.open("a") as known:
        known.write(f"[localhost]:{server.port} {(server.folder / 'host.pub').read_text()}")
    on = [part for each in boards for part in ("--on", each)]
    quick = ["--samples", "9", "--rounds", "2", "--no-memory", "--engines", "onnxruntime"]
    done = CliRunner().invoke(app, ["compare", str(model), *on, *quick, "--json", str(tmp_path / "rows.json")])
    assert done.exit_code == 1, done.output
    assert f"error: ssh:{away}: no connection" in done.stderr
    assert "p50 in ms, or instructions" in done.stdout
    assert len(list(tmp_path.glob("rows-ssh-*.json"))) == 2


@needs_server
def test_the_probe_on_the_command_line(server, board):
    done = CliRunner().invoke(app, ["boards", "probe", f"ssh:{server.address}"])
    assert done.exit_code == 0, done.output
    assert "onnxruntime" in done.stdout
    assert "usable core(s)" in done.stdout


@needs_server
def test_an_emulated_board_over_ssh(server, board, model, tmp_path):
    def cut(done, total, step):
        if "memory" in step:
            server.cut()

    try:
        pi4 = emulator.find("pi4")
    except BoardError as error:
        pytest.skip(str(error))
    server.runs(*pi4.shell("/usr/bin/env", f"HOME={board}", "/bin/sh", "-c"))
    with places.place(f"ssh:{server.address}") as place:
        found = _compare(model, place, tmp_path)
        interrupted = _compare(model, place, tmp_path, memory=True, progress=cut)
        assert "onnxruntime" in place.engines()
        assert "eager" not in place.engines()
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
