"""Power and heat beside the work, the whole way: on the command line, in a comparison, and on a board over SSH.

The board's tegrastats is a program that prints recorded lines; all else is real.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import engine_nets as nets
import pytest
import ssh_server
from rich.console import Console
from typer.testing import CliRunner

from deploylab import report
from deploylab.bench import compare as bench
from deploylab.bench.energy import Sample, Track
from deploylab.boards import meter, places, recorded, watch
from deploylab.cli import app
from deploylab.errors import BoardError

needs_server = pytest.mark.skipif(bool(ssh_server.missing()), reason=ssh_server.missing() or "there is a server")
QUICK = {"samples": 9, "rounds": 2, "memory": False, "accuracy": False}


@pytest.fixture
def programs(tmp_path):
    """A folder with a tegrastats that repeats what a Xavier NX printed."""
    folder = tmp_path / "programs"
    folder.mkdir()
    lines = recorded.recording("tegrastats", "xavier-nx-burn").lines
    path = folder / "tegrastats"
    path.write_text(
        f"#!{sys.executable}\nimport itertools, time\n"
        f"for line in itertools.cycle({lines!r}):\n    print(line, flush=True)\n    time.sleep(0.02)\n"
    )
    path.chmod(0o755)
    return folder


@pytest.fixture
def metered(programs, monkeypatch):
    """This machine as one that tells its power."""
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return nets.matrix_product(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def shortly(monkeypatch):
    monkeypatch.setattr(bench, "IDLE_S", 1.5)
    monkeypatch.setattr(bench, "ENERGY_S", 2.5)


def compare(model, place, folder, **options):
    paths = {"out_dir": folder / "artifacts", "ledger_path": folder / "ledger.jsonl"}
    return bench.compare(model, ["onnxruntime"], place=place, **{**QUICK, **paths, **options})


def check_energy(found):
    """Power and heat of the one row lie within what was recorded, and energy fits them."""
    (row,) = found.rows
    assert row.ok, row.reason
    energy = row.energy
    assert energy.scope == "VDD_IN"
    assert 5.5 < energy.power_w < 13.9
    assert 5.5 < energy.idle_w < 13.9
    assert energy.mj == pytest.approx(1e3 * energy.power_w * energy.seconds / energy.inferences)
    assert energy.mj - energy.mj_above_idle == pytest.approx(1e3 * energy.idle_w * energy.seconds / energy.inferences)
    assert 37 < energy.celsius < 49
    console = Console(record=True, width=220, file=io.StringIO())
    report.print_comparison(found, console)
    told = " ".join(console.export_text().split())
    assert "power energy above idle heat" in told
    assert "power: mean of VDD_IN, while the engine ran alone" in told
    assert f"read {energy.readings} times a row, which took {energy.sampler_share:.1%} of a core" in told


def test_a_comparison_tells_energy_where_there_are_sensors(metered, model, tmp_path):
    found = compare(model, places.place("here"), tmp_path)
    check_energy(found)
    recorded_row = json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[-1])
    assert recorded_row["energy"]["scope"] == "VDD_IN"
    found.rows[0].energy = None
    assert "energy" not in [column.title for column in report.columns(found)]


def test_a_sampler_that_breaks_costs_no_row(metered, programs, model, tmp_path, monkeypatch):
    class Broken(places.Here):
        def meter(self, interval_s=None):
            found = super().meter(interval_s)
            found._command = [sys.executable, "-c", ""]
            return found

    steps = []
    found = compare(model, Broken(), tmp_path, progress=lambda done, total, step: steps.append((done, total)))
    assert found.rows[0].latency
    assert found.rows[0].energy is None
    assert any("power and heat were not read" in note for note in found.notes)
    assert steps[-1][0] == steps[-1][1]


def test_watching_this_machine(metered, tmp_path):
    files = ["--csv", str(tmp_path / "w.csv"), "--png", str(tmp_path / "w.png")]
    done = CliRunner().invoke(app, ["boards", "watch", "--seconds", "0.4", "--interval", "0.1", *files])
    assert done.exit_code == 0, done.output
    assert "here: power: VDD_IN" in done.stderr
    lines = done.stdout.splitlines()
    assert " W  " in lines[0]
    assert "°C" in lines[0]
    assert "J (VDD_IN); hottest" in lines[-1]
    assert "of a core" in lines[-1]
    rows = list(csv.DictReader((tmp_path / "w.csv").open()))
    assert len(rows) == len(lines) - 1
    assert 5.5 < float(rows[0]["VDD_IN watts"]) < 13.9
    assert (tmp_path / "w.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_ends_watching_with_a_summary(metered):
    command = [sys.executable, "-m", "deploylab.cli", "boards", "watch", "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert " W  " in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        said, errors = watching.communicate(timeout=60)
    assert watching.returncode == 0, errors
    assert "held back: never" in said.splitlines()[-1]
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--csv", "/no/such/folder/w.csv"], "there is no folder"),
        (["ssh:-oProxy"], "is no address"),
        (["moon"], "moon"),
    ],
)
def test_what_cannot_be_watched(arguments, message):
    done = CliRunner().invoke(app, ["boards", "watch", *arguments])
    assert done.exit_code == 1
    assert message in done.stderr


def test_a_machine_without_sensors_says_so(tmp_path, monkeypatch):
    bare = meter.command(0.1, root=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(meter, "command", lambda interval_s: bare)
    with pytest.raises(BoardError, match="neither power nor temperature nor clocks"):
        watch.watch("here", 1.0, 0.1, show=lambda at, sample: None)


def test_a_line_and_a_summary_leave_out_what_is_not_known():
    assert watch.line(1.5, Sample(at=0)) == "    1.5 s"
    sample = Sample(at=0, watts=4.76, celsius={"cpu": 48.5}, mhz=[1500, 1500], held_back=["throttled"])
    assert watch.line(12, sample) == "   12.0 s    4.76 W  cpu 48.5 °C  1500 MHz  held back: throttled"
    told = watch.summary(watch.Watched(Track([sample]), None, lost=True))
    assert told == (
        "0.0 s, 1 readings; hottest cpu 48.5 °C; held back: throttled; the readings ended by themselves, so the "
        "connection or the sampler was lost"
    )


@needs_server
def test_a_board_over_ssh_is_metered(programs, model, tmp_path, monkeypatch):
    """Its tegrastats runs there, beside the worker, and both are gone afterwards."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "sshd").mkdir()
    server = ssh_server.Server(tmp_path / "sshd")
    path = f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin"
    server.runs("env", "-i", f"HOME={home}", f"PATH={path}", "/bin/sh", "-c")
    monkeypatch.setenv("DEPLOYLAB_SSH", server.config("user"))
    try:
        server.start()
        with places.place(f"ssh:{server.address}") as board:
            assert board.before["power"] == "VDD_IN"
            check_energy(compare(model, board, tmp_path))
            assert not [line for line in ssh_server.processes_naming(str(home)) if "boards.sampler" in line]
            with board.meter(0.05) as beside:
                assert beside.next(60).watts
                server.cut()
                while beside.next(60):
                    pass
                assert not beside.running
    finally:
        server.stop()
    for _ in range(600):
        if not ssh_server.processes_naming(str(tmp_path)):
            break
        time.sleep(0.1)
    assert not ssh_server.processes_naming(str(tmp_path))
