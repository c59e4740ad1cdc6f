"""hardware/classify.py: pictures out of streams, cameras read through pipes, what systemd is told."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deploylab import engines, image, paths
from deploylab.boards import emulator
from deploylab.errors import BoardError, InputError
from deploylab.serving import artifacts
from deploylab.signs import CLASSES, dataset

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="boards run Linux")
PROGRAM = paths.root() / "hardware" / "classify.py"
spec = importlib.util.spec_from_file_location("hardware_classify", PROGRAM)
classify = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = classify  # dataclasses look their module up
spec.loader.exec_module(classify)


def jpeg(side: int, **options) -> bytes:
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG", **options)
    return stream.getvalue()


def with_thumbnail(picture: bytes) -> bytes:
    """A whole JPEG inside an application segment, as cameras put it there."""
    inside = b"Exif\0\0" + jpeg(8)
    return picture[:2] + b"\xff\xe1" + (len(inside) + 2).to_bytes(2, "big") + inside + picture[2:]


JPEGS = [
    jpeg(8),
    jpeg(40, quality=95),
    jpeg(32, progressive=True),
    jpeg(48, restart_marker_blocks=1),
    with_thumbnail(jpeg(24)),
]


class InPieces(io.RawIOBase):
    """A stream that gives its bytes in pieces of the given lengths, over and over."""

    def __init__(self, data: bytes, lengths: list[int]) -> None:
        self.data, self.lengths, self.turn = data, lengths, 0

    def read(self, size: int = -1) -> bytes:
        length = min(self.lengths[self.turn % len(self.lengths)], size)
        self.turn += 1
        piece, self.data = self.data[:length], self.data[length:]
        return piece


# --- streams ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.sampled_from(JPEGS), max_size=4), st.lists(st.integers(5, 2000), min_size=1, max_size=5))
def test_a_stream_gives_back_its_pictures_however_it_is_cut(pictures, lengths):
    assert list(classify.jpegs(InPieces(b"".join(pictures), lengths))) == pictures


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(1, 300))
def test_bytes_that_are_no_picture_never_end_the_loop(before, after, length):
    noise = before.replace(b"\xff", b"")
    found = list(classify.jpegs(InPieces(noise + JPEGS[1] + after, [length])))
    assert JPEGS[1] in found


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_the_end_of_a_jpeg_is_inside_the_data_or_unknown(data):
    end = classify.jpeg_end(b"\xff\xd8" + data, 0)
    assert end is None or 0 <= end <= len(data) + 2


def test_a_picture_cut_off_before_the_next_is_dropped_with_it_at_most():
    stream = io.BytesIO(JPEGS[1][:100] + JPEGS[0] + JPEGS[2] + JPEGS[0])
    assert list(classify.jpegs(stream))[-2:] == [JPEGS[2], JPEGS[0]]


def test_raw_pictures_have_their_size_and_a_cut_off_one_is_left_out():
    data = np.arange(2 * 3 * 4 * 3, dtype=np.uint8)
    first, second = classify.raw(4, 3)(io.BytesIO(data.tobytes() + b"rest"))
    assert first.shape == second.shape == (3, 4, 3)
    assert np.array_equal(second.reshape(-1), data[36:])


# --- with an engine ---------------------------------------------------------------------------------------------------


@pytest.fixture
def one_artifact():
    return signnet("onnxruntime")


def signnet(engine: str) -> engines.Artifact:
    return engines.Artifact.read(artifacts.prepare("signnet", engine))


@pytest.fixture(params=["onnxruntime", "ncnn"])
def artifact(request):
    return signnet(request.param)


SAMPLES = [sample.path for sample in dataset.samples()[:6]]


def expected(artifact, pictures) -> list[str]:
    session = engines.get(artifact.engine).load(artifact)
    return [CLASSES[int(session(image.SIGNNET(picture)).argmax())] for picture in pictures]


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def run(artifact, *words: str) -> int:
    return classify.main([str(artifact.path), "--json", "--confidence", "0", *words])


def test_a_folder_of_pictures_with_any_engine(artifact, capsys, tmp_path):
    for path in SAMPLES:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert run(artifact, "--source", str(tmp_path)) == 0
    said = capsys.readouterr()
    assert [row["label"] for row in rows(said.out)] == expected(artifact, SAMPLES)
    assert [row["picture"] for row in rows(said.out)] == [path.name for path in SAMPLES]
    assert "median of the last 6" in said.err


def test_a_video_file_loses_no_picture(one_artifact, capsys, tmp_path):
    video = tmp_path / "drive.mjpeg"
    video.write_bytes(b"".join(path.read_bytes() for path in SAMPLES))
    assert run(one_artifact, "--source", str(video), "--smooth", "1") == 0
    assert [row["label"] for row in rows(capsys.readouterr().out)] == expected(one_artifact, SAMPLES)


def test_averaging_outlasts_one_odd_picture(one_artifact, capsys, tmp_path):
    stop, other = (next(path for path in SAMPLES if name in path.name) for name in ("stop", "yield"))
    video = tmp_path / "drive.mjpeg"
    video.write_bytes(b"".join(path.read_bytes() for path in [stop] * 5 + [other] + [stop] * 2))
    assert run(one_artifact, "--source", str(video), "--smooth", "6") == 0
    assert {row["label"] for row in rows(capsys.readouterr().out)} == {"stop"}


def test_only_changes_are_said_and_doubt_is_called_unsure(one_artifact, capsys, tmp_path):
    video = tmp_path / "drive.mjpeg"
    video.write_bytes(SAMPLES[5].read_bytes() * 4 + JPEGS[1] * 8)
    assert classify.main([str(one_artifact.path), "--source", str(video), "--confidence", "0.9"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("1: stop")
    assert others
    assert len(others) < 8
    assert "unsure" in others[0]
    assert "perhaps stop" in others[0]


def test_a_damaged_picture_is_named_and_the_rest_goes_on(one_artifact, capsys, tmp_path):
    (tmp_path / "a.jpg").write_bytes(SAMPLES[0].read_bytes()[:500])
    (tmp_path / "b.jpg").write_bytes(SAMPLES[5].read_bytes())
    assert run(one_artifact, "--source", str(tmp_path)) == 0
    said = capsys.readouterr()
    assert [row["picture"] for row in rows(said.out)] == ["b.jpg"]
    assert "picture a.jpg: " in said.err


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "missing.mp4", "no such file or folder; cameras are auto, rpicam"),
        (lambda folder: folder, "holds no picture"),
        (lambda folder: folder.joinpath("a.mjpeg").write_bytes(b"text") and folder / "a.mjpeg", "holds no picture"),
        (lambda folder: folder.joinpath("a.jpg").write_bytes(b"text") and folder, "none of the 1 pictures"),
        (lambda folder: "v4l2:/dev/video-none", "there is no camera /dev/video-none"),
    ],
)
def test_what_is_wrong_with_a_source_is_said(one_artifact, capsys, tmp_path, make, said):
    assert run(one_artifact, "--source", str(make(tmp_path))) == 1
    assert said in capsys.readouterr().err


def test_a_missing_artifact_and_a_wrong_size_are_errors(capsys, tmp_path):
    assert classify.main([str(tmp_path), "--source", str(SAMPLES[0])]) == 1
    assert "manifest.json" in capsys.readouterr().err
    with pytest.raises(InputError, match="multiple of 4"):
        classify.source("csi", 641, 480, 15)
    with pytest.raises(SystemExit):
        classify.arguments(["artifact", "--keep", "2"])


def test_an_emulated_board_without_torch_sees_the_same(tmp_path):
    try:
        board = emulator.find("pi4")
    except BoardError as error:
        pytest.skip(str(error))
    made = signnet("ncnn")
    words = ("--source", str(SAMPLES[5]), "--json", "--confidence", "0")
    done = subprocess.run(
        board.shell("python3", str(PROGRAM), str(made.path), *words), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert [row["label"] for row in rows(done.stdout)] == expected(made, SAMPLES[5:])


# --- cameras: programs that write to a pipe ---------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts a program of a camera's maker on the path: one that notes its arguments, then does what ``body`` says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(name: str, body: str) -> Path:
        noted = tmp_path / f"{name}.arguments"
        (folder / name).write_text(
            f"#!{sys.executable}\nimport os, sys, time\nopen({str(noted)!r}, 'w').write('\\n'.join(sys.argv[1:]))\n"
            f"open({str(noted)!r} + '.pid', 'w').write(str(os.getpid()))\n{body}"
        )
        (folder / name).chmod(0o755)
        return noted

    return put


def video(tmp_path) -> Path:
    path = tmp_path / "camera.bin"
    path.write_bytes(SAMPLES[5].read_bytes() * 3)
    return path


def test_a_raspberry_pis_camera(one_artifact, capsys, tmp_path, programs):
    noted = programs("rpicam-vid", f"sys.stdout.buffer.write(open({str(video(tmp_path))!r}, 'rb').read())")
    assert run(one_artifact, "--source", "rpicam", "--size", "320x240", "--rate", "5", "--frames", "1") == 0
    assert rows(capsys.readouterr().out)[-1]["label"] == "stop"
    words = noted.read_text().splitlines()
    assert words[words.index("--codec") + 1] == "mjpeg"
    assert words[words.index("--width") + 1] == "320"
    assert words[words.index("--framerate") + 1] == "5"
    assert words[-2:] == ["--output", "-"]


GSTREAMER = """
print("GST_ARGUS: what NVIDIA's camera source prints on standard output", flush=True)
[sink] = [word for word in sys.argv if word.startswith("fd=")]
from PIL import Image
picture = Image.open({picture!r}).convert("RGB").resize((320, 240))
with open(int(sink[3:]), "wb") as stream:
    for _ in range(3):
        stream.write(picture.tobytes())
"""


@pytest.mark.parametrize("kind", ["csi:1", "file"])
def test_gstreamers_pictures_do_not_mix_with_what_it_prints(one_artifact, capsys, tmp_path, programs, kind):
    noted = programs("gst-launch-1.0", GSTREAMER.format(picture=str(SAMPLES[5])))
    movie = tmp_path / "a drive.mp4"
    movie.touch()
    wanted = kind if kind != "file" else str(movie)
    count = ("--frames", "1") if kind != "file" else ()
    assert run(one_artifact, "--source", wanted, "--size", "320x240", *count) == 0
    found = rows(capsys.readouterr().out)
    assert found[-1]["label"] == "stop"
    words = noted.read_text().splitlines()
    assert "video/x-raw,format=RGB,width=320,height=240" in words
    if kind == "file":
        assert len(found) == 3
        assert f"location={movie}" in words
    else:
        assert words[1:3] == ["nvarguscamerasrc", "sensor-id=1"]


def test_a_camera_program_that_fails_is_quoted(one_artifact, capsys, programs):
    programs("rpicam-vid", "sys.exit('ERROR: no cameras available')")
    assert run(one_artifact, "--source", "rpicam") == 1
    said = capsys.readouterr().err
    assert "exit code 1; it said last" in said
    assert "no cameras available" in said


def test_a_camera_that_ends_by_itself_is_an_error_so_that_systemd_starts_it_again(
    one_artifact, capsys, tmp_path, programs
):
    programs("rpicam-vid", f"sys.stdout.buffer.write(open({str(video(tmp_path))!r}, 'rb').read())")
    assert run(one_artifact, "--source", "rpicam") == 1
    said = capsys.readouterr()
    assert rows(said.out)[-1]["label"] == "stop"
    assert "rpicam-vid ended with exit code 0" in said.err


def test_a_program_that_closes_its_pipe_and_stays_is_ended():
    quiet = "import os, time; os.close(1); time.sleep(300)"
    origin = classify.Source("odd", classify.jpegs, live=False, command=(sys.executable, "-c", quiet))
    with pytest.raises(BoardError, match="does not end"), classify.Frames(origin, 0.5) as frames:
        next(iter(frames))
    assert frames._process.returncode == -signal.SIGTERM


def test_a_camera_that_gives_nothing_ends_the_loop_and_its_program():
    origin = classify.Source("slow", classify.jpegs, live=True, command=("sleep", "300"))
    with pytest.raises(BoardError, match=r"slow gave no picture for 0\.5 s"), classify.Frames(origin, 0.5) as frames:
        next(iter(frames))
    assert frames._process.returncode == -signal.SIGTERM


def test_without_its_program_a_camera_says_what_to_install(monkeypatch):
    monkeypatch.setattr(classify.shutil, "which", lambda name: None)
    with pytest.raises(BoardError, match="apt-get install rpicam-apps"):
        classify.source("rpicam", 640, 480, 15)
    with pytest.raises(BoardError, match=r"gstreamer1\.0-tools"):
        classify.source("csi", 640, 480, 15)
    monkeypatch.setattr(classify.Path, "exists", lambda path: False)
    with pytest.raises(BoardError, match="no camera found"):
        classify.source("auto", 640, 480, 15)


def test_of_a_camera_that_is_too_fast_the_newest_is_taken():
    total = 40
    program = f"import sys; [sys.stdout.buffer.write(bytes([n]) * 48) for n in range({total})]"
    origin = classify.Source("fast", classify.raw(4, 4), live=True, command=(sys.executable, "-c", program))
    values = []

    def look(frames) -> None:
        for _, picture in frames:
            values.append(int(picture[0, 0, 0]))
            while not frames._ended:
                time.sleep(0.01)

    with classify.Frames(origin, stall_s=60) as frames:
        with pytest.raises(BoardError, match="ended with exit code 0"):
            look(frames)
        dropped = frames.dropped
    assert values[-1] == total - 1
    assert values == sorted(values)
    assert len(values) + dropped == total
    assert len(values) <= 2


# --- under systemd ----------------------------------------------------------------------------------------------------


def heard(line: socket.socket) -> list[str]:
    """The messages until STOPPING, or until nothing comes any more."""
    line.settimeout(60)
    messages = []
    while "STOPPING=1" not in messages:
        messages += line.recv(4096).decode().splitlines()
    return messages


def test_systemd_hears_that_it_is_ready_alive_and_stopping(one_artifact, tmp_path, programs):
    endless = "while True:\n sys.stdout.buffer.write({0}); sys.stdout.flush(); time.sleep(0.05)"
    noted = programs("rpicam-vid", endless.format(f"open({str(SAMPLES[5])!r}, 'rb').read()"))
    line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    line.bind(str(tmp_path / "notify"))
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000", "JOURNAL_STREAM": "8:1"}
    service = subprocess.Popen(
        [sys.executable, PROGRAM, one_artifact.path, "--source", "rpicam"],
        env=os.environ | told,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line.settimeout(120)
        messages: list[str] = []
        while messages.count("WATCHDOG=1") < 3:
            messages += line.recv(4096).decode().splitlines()
        assert messages[0] == "READY=1"
        assert any(message.startswith("STATUS=stop (") for message in messages)
        service.send_signal(signal.SIGTERM)
        assert heard(line)[-1] == "STOPPING=1"
        out, err = service.communicate(timeout=60)
    finally:
        service.kill()
        line.close()
    assert service.returncode == 0
    assert out.startswith("<6>1: stop (")
    assert "error" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path(f"{noted}.pid").read_text()), 0)


def test_without_systemd_nothing_is_told(monkeypatch):
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM"):
        monkeypatch.delenv(name, raising=False)
    supervisor = classify.Supervisor()
    supervisor.tell("READY=1")
    supervisor.alive()
    assert supervisor.line("text") == "text"


def test_the_watchdog_of_another_process_is_left_alone(monkeypatch, tmp_path):
    line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    line.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    classify.Supervisor().alive()
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    classify.Supervisor().alive()
    line.settimeout(30)
    assert line.recv(100) == b"WATCHDOG=1"
    line.setblocking(False)
    with pytest.raises(BlockingIOError):
        line.recv(100)
    line.close()
