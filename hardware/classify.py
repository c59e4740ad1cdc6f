#!/usr/bin/env python3
"""Classify what a camera sees, with any engine: ``python hardware/classify.py ARTIFACT --source auto``.

``ARTIFACT`` is a converted model (a folder with ``manifest.json``), made on a larger machine and copied here. A camera,
a video or pictures are the source. Cameras are read by the programs that their makers support, through a pipe, so that
nothing has to be compiled against this Python: ``rpicam-vid``, Picamera2 in the system's own Python, GStreamer.

Under systemd it reports that it is ready and alive (``sd_notify(3)``) and gives its lines a level (``sd-daemon(3)``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "utils"))

import numpy as np

from deploylab import engines, machine, models
from deploylab.engines import Artifact
from deploylab.errors import BoardError, DeployLabError, InputError
from deploylab.image import MAX_BYTES, Preprocessor

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
MJPEG = (".mjpeg", ".mjpg")
SENSOR = (1280, 720, 30)
"""Mode asked of a Jetson's CSI sensor (width, height, pictures a second); the ISP scales it down."""
_CHUNK = 1 << 16

Picture: TypeAlias = "bytes | np.ndarray"
"""An encoded picture, or uint8 RGB (H, W, 3)."""
Split: TypeAlias = Callable[[BinaryIO], Iterator[Picture]]


# --- pictures out of a stream of bytes --------------------------------------------------------------------------------


def jpegs(stream: BinaryIO) -> Iterator[bytes]:
    """The JPEG pictures of a Motion-JPEG stream: one after the other, nothing between. What is damaged is left out."""
    buffer = bytearray()
    while chunk := _read_some(stream):
        buffer += chunk
        while (start := buffer.find(b"\xff\xd8\xff")) >= 0:
            end = jpeg_end(buffer, start)
            if end is None:
                break
            if end > start:
                yield bytes(buffer[start:end])
            del buffer[: max(end, start + 2)]
        if len(buffer) > MAX_BYTES:
            buffer.clear()


def jpeg_end(data: bytes | bytearray, start: int) -> int | None:
    """Where the JPEG that begins at ``start`` ends; None if it goes on, ``start`` if it is damaged.

    Segments are skipped by their length, so that a thumbnail inside does not end the picture (ISO/IEC 10918-1, B.1).
    """
    at, size = start + 2, len(data)
    while at + 1 < size:
        if data[at] != 0xFF:
            return start
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0xD9:
            return at + 2
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
        elif marker in (0x00, 0xD8):
            return start
        else:
            if at + 4 > size:
                return None
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
            if marker == 0xDA:
                at = _after_scan(data, at)
    return None


def _after_scan(data: bytes | bytearray, at: int) -> int:
    """The next marker after compressed data, in which 0xFF is followed by 0 or by a restart marker."""
    while 0 <= (found := data.find(b"\xff", at)) < len(data) - 1:
        if data[found + 1] != 0 and not 0xD0 <= data[found + 1] <= 0xD7:
            return found
        at = found + 2
    return len(data)


def raw(width: int, height: int) -> Split:
    """Splits a stream of uint8 RGB pictures of one size; a cut-off last one is left out."""

    def split(stream: BinaryIO) -> Iterator[np.ndarray]:
        while len(data := stream.read(3 * width * height)) == 3 * width * height:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)

    return split


def _read_some(stream: BinaryIO) -> bytes:
    """What is there, at most a chunk; a plain ``read`` would wait for all of it and delay a camera's picture."""
    return stream.read1(_CHUNK) if hasattr(stream, "read1") else stream.read(_CHUNK)


# --- sources ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where pictures come from. A ``live`` one is never waited for: of what it gave meanwhile, the newest is taken.

    ``command`` writes to the file descriptor whose number replaces ``{fd}`` in it, or to its standard output.
    """

    name: str
    split: Split
    live: bool
    command: Sequence[str] = ()
    path: Path | None = None
    files: Sequence[Path] = ()


_PICAMERA2 = """
import sys, threading
from picamera2 import Picamera2
from picamera2.encoders import MJPEGEncoder
from picamera2.outputs import FileOutput
width, height, rate = map(int, sys.argv[1:])
camera = Picamera2()
camera.configure(camera.create_video_configuration(main={"size": (width, height)}, controls={"FrameRate": rate}))
camera.start_recording(MJPEGEncoder(), FileOutput(sys.stdout.buffer))
threading.Event().wait()
"""


def source(text: str, width: int, height: int, rate: int) -> Source:
    """The source that ``--source`` names. Raises :class:`InputError` or :class:`BoardError` saying what is missing."""
    if width % 4:
        raise InputError(f"--size {width}x{height}: the width must be a multiple of 4, as GStreamer pads rows to that")
    kind, _, rest = text.partition(":")
    size = (str(width), str(height), str(rate))
    if kind == "auto":
        return source(_found(), width, height, rate)
    if kind == "rpicam":
        return Source(kind, jpegs, live=True, command=_rpicam(*size))
    if kind == "picamera2":
        return Source(kind, jpegs, live=True, command=("/usr/bin/python3", "-c", _PICAMERA2, *size))
    if kind in ("csi", "v4l2"):
        first = _csi(rest or "0", width, height) if kind == "csi" else _v4l2(rest or "/dev/video0")
        return Source(text, raw(width, height), live=True, command=_gstreamer(first, width, height))
    if text == "-":
        return Source("standard input", jpegs, live=True)
    return _of_files(Path(text), width, height)


def _of_files(path: Path, width: int, height: int) -> Source:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not files:
            raise InputError(f"{path} holds no picture ({', '.join(PICTURES)})")
        return Source(str(path), jpegs, live=False, files=files)
    if not path.is_file():
        raise InputError(
            f"--source {path}: no such file or folder; cameras are auto, rpicam, picamera2, csi[:SENSOR], "
            "v4l2[:DEVICE], and - is Motion-JPEG on standard input"
        )
    if path.suffix.lower() in PICTURES:
        return Source(str(path), jpegs, live=False, files=[path])
    if path.suffix.lower() in MJPEG:
        return Source(str(path), jpegs, live=False, path=path)
    first = ("filesrc", f"location={path.resolve()}", "!", "decodebin")
    return Source(str(path), raw(width, height), live=False, command=_gstreamer(first, width, height))


def _found() -> str:
    """The camera of this board, by what is installed for it."""
    if any(map(shutil.which, _RPICAM)):
        return "rpicam"
    name = machine.board() or ""
    if "NVIDIA" in name and shutil.which("gst-launch-1.0") and Path("/tmp/argus_socket").exists():
        return "csi"
    if Path("/dev/video0").exists():
        return "v4l2"
    raise BoardError(
        "no camera found: there is neither rpicam-vid nor NVIDIA's camera daemon nor /dev/video0; "
        "name one with --source, or run setup.sh --camera"
    )


_RPICAM = ("rpicam-vid", "libcamera-vid")  # the second is the name on systems before Debian 12


def _rpicam(width: str, height: str, rate: str) -> Sequence[str]:
    program = next(filter(None, map(shutil.which, _RPICAM)), None)
    if not program:
        raise BoardError("there is no rpicam-vid here; on Raspberry Pi OS: sudo apt-get install rpicam-apps")
    mode = ("--width", width, "--height", height, "--framerate", rate)
    return (program, "--codec", "mjpeg", "--timeout", "0", "--nopreview", "--flush", *mode, "--output", "-")


def _csi(sensor: str, width: int, height: int) -> Sequence[str]:
    sensor_width, sensor_height, rate = SENSOR
    mode = f"video/x-raw(memory:NVMM),width={sensor_width},height={sensor_height},framerate={rate}/1,format=NV12"
    small = f"video/x-raw,format=BGRx,width={width},height={height}"
    return ("nvarguscamerasrc", f"sensor-id={sensor}", "!", mode, "!", "nvvidconv", "!", small)


def _v4l2(device: str) -> Sequence[str]:
    if not Path(device).exists():
        raise BoardError(f"there is no camera {device}; `ls /dev/video*` shows those that are there")
    return ("v4l2src", f"device={device}", "!", "decodebin", "!", "queue", "leaky=downstream", "max-size-buffers=1")


def _gstreamer(first: Sequence[str], width: int, height: int) -> Sequence[str]:
    """A pipeline that writes RGB pictures to a descriptor of its own: NVIDIA's source prints on standard output."""
    program = shutil.which("gst-launch-1.0")
    if not program:
        raise BoardError(
            "there is no gst-launch-1.0 here; on Debian and Ubuntu: sudo apt-get install gstreamer1.0-tools "
            "gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
        )
    caps = f"video/x-raw,format=RGB,width={width},height={height}"
    rest = ("!", "videoconvert", "!", "videoscale", "!", caps, "!", "fdsink", "fd={fd}", "sync=false")
    return (program, "-q", *first, *rest)


# --- reading a source -------------------------------------------------------------------------------------------------


class Frames:
    """Iterates over a source's pictures, and ends its program when the block ends. ``dropped`` counts those skipped."""

    def __init__(self, origin: Source, stall_s: float) -> None:
        self.origin, self.stall_s, self.dropped = origin, stall_s, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._changed = threading.Condition()
        self._newest: Picture | None = None
        self._ended = False

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._said.close()

    def __iter__(self) -> Iterator[tuple[str, Picture]]:
        """Name and picture. Raises :class:`BoardError` if a camera ends or gives nothing for ``stall_s`` seconds."""
        if self.origin.files:
            for path in self.origin.files:
                yield path.name, path.read_bytes()
            return
        stream = self._open()
        pictures = self._live(stream) if self.origin.live else self.origin.split(stream)
        number = 0
        for number, picture in enumerate(pictures, 1):
            yield str(number), picture
        if self._process is not None:
            self._check_end(self._process)
        if not number:
            raise InputError(f"{self.origin.name} holds no picture")

    def _check_end(self, process: subprocess.Popen[bytes]) -> None:
        """A program that reads a file may end, one that reads a camera may not."""
        name = Path(process.args[0]).name
        try:
            code = process.wait(self.stall_s)
        except subprocess.TimeoutExpired:
            raise BoardError(f"{name} gives no pictures any more and does not end{self._words()}") from None
        if code or self.origin.live:
            raise BoardError(f"{name} ended with exit code {code}{self._words()}")

    def _open(self) -> BinaryIO:
        if self.origin.path is not None:
            return open(self.origin.path, "rb")
        if not self.origin.command:
            return sys.stdin.buffer
        read, write = os.pipe()
        own = any("{fd}" in part for part in self.origin.command)
        command = [part.replace("{fd}", str(write)) for part in self.origin.command]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._said if own else write,
                stderr=self._said,
                pass_fds=(write,) if own else (),
                start_new_session=True,  # Ctrl-C is for this program, which then ends that one
            )
        finally:
            os.close(write)
        return open(read, "rb")

    def _live(self, stream: BinaryIO) -> Iterator[Picture]:
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._newest is not None or self._ended, self.stall_s):
                    raise BoardError(f"{self.origin.name} gave no picture for {self.stall_s:g} s{self._words()}")
                picture, self._newest = self._newest, None
            if picture is None:
                return
            yield picture

    def _read(self, stream: BinaryIO) -> None:
        try:
            for picture in self.origin.split(stream):
                with self._changed:
                    self.dropped += self._newest is not None
                    self._newest = picture
                    self._changed.notify()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()[-5:]
        return "; it said last:\n  " + "\n  ".join(lines) if lines else ""


# --- systemd ----------------------------------------------------------------------------------------------------------


class Supervisor:
    """Tells systemd how this service is; does nothing elsewhere. The messages are those of ``sd_notify(3)``."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        limit = os.environ.get("WATCHDOG_USEC", "")
        self._every_s = int(limit) / 1e6 / 3 if mine and limit.isdigit() else None
        self._last = -math.inf
        self.levels = bool(os.environ.get("JOURNAL_STREAM"))

    def tell(self, message: str) -> None:
        if self._address:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.sendto(message.encode(), self._address)

    def alive(self) -> None:
        """Called after every picture: a camera or an engine that hangs lets the watchdog run out."""
        now = time.monotonic()
        if self._every_s is not None and now - self._last >= self._every_s:
            self.tell("WATCHDOG=1")
            self._last = now

    def line(self, text: str, level: int = 6) -> str:
        return f"<{level}>{text}" if self.levels else text


# --- the loop ---------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """The answer for one picture: ``label`` is the likeliest class, ``probability`` its averaged share."""

    name: str
    label: str
    probability: float
    milliseconds: dict[str, float]


@dataclass
class Classifier:
    """A session with the preprocessing and the labels of its model. Averages over about ``smooth`` pictures."""

    session: engines.Session
    preprocess: Preprocessor
    labels: Sequence[str] | None
    smooth: int = 1
    _mean: np.ndarray | None = field(default=None, repr=False)

    def __call__(self, name: str, picture: Picture) -> Seen:
        """Raises :class:`InputError` for a picture that cannot be decoded."""
        started = time.perf_counter()
        x = self.preprocess(picture)
        ready = time.perf_counter()
        logits = np.asarray(self.session(x), np.float64).reshape(-1)
        done = time.perf_counter()
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        # Exponential average: the weight of a picture falls to 1/e after `smooth` others.
        self._mean = shares if self._mean is None else self._mean + (shares - self._mean) / self.smooth
        best = int(self._mean.argmax())
        label = self.labels[best] if self.labels else f"class {best}"
        spent = {"preprocess": 1e3 * (ready - started), "inference": 1e3 * (done - ready)}
        return Seen(name, label, float(self._mean[best]), spent)


def load(artifact: Path, model: str, threads: int, smooth: int, keep: float | None) -> Classifier:
    """Raises :class:`DeployLabError` if the artifact, its engine or the model is not there."""
    found = Artifact.read(artifact)
    session = engines.get(found.engine).load(found, threads)
    known = models.info(model)
    size = session.inputs[0].shape[-1] or known.preprocessor.size
    own_keep = known.preprocessor.keep if keep is None else keep
    return Classifier(session, dataclasses.replace(known.preprocessor, size=size, keep=own_keep), known.labels, smooth)


def run(classifier: Classifier, frames: Frames, options: argparse.Namespace, supervisor: Supervisor) -> Sequence[Seen]:
    """Classify until the source ends or ``--frames`` are seen. Prints what it sees when that changes."""
    seen: deque[Seen] = deque(maxlen=1000)
    said, refused = "", 0
    supervisor.tell(f"READY=1\nSTATUS=waiting for {frames.origin.name}")
    for name, picture in frames:
        try:
            answer = classifier(name, picture)
        except InputError as error:
            refused += 1
            print(supervisor.line(f"picture {name}: {error}", 4), file=sys.stderr, flush=True)
        else:
            seen.append(answer)
            now = answer.label if answer.probability >= options.confidence else "unsure"
            if options.json:
                print(json.dumps(_row(answer, now, frames)), flush=True)
            elif now != said or frames.origin.files:
                print(supervisor.line(_line(answer, now)), flush=True)
                supervisor.tell(f"STATUS={now} ({answer.probability:.0%})")
            said = now
        supervisor.alive()
        options.frames -= 1
        if not options.frames:
            break
    if not seen and refused:
        raise InputError(f"none of the {refused} pictures of {frames.origin.name} could be read")
    return seen


def _row(answer: Seen, now: str, frames: Frames) -> dict[str, Any]:
    spent = {key: round(value, 3) for key, value in answer.milliseconds.items()}
    row = {"picture": answer.name, "label": now, "best": answer.label, "probability": round(answer.probability, 4)}
    return row | {"ms": spent, "dropped": frames.dropped}


def _line(answer: Seen, now: str) -> str:
    spent = ", ".join(f"{key} {value:.1f} ms" for key, value in answer.milliseconds.items())
    best = "" if now == answer.label else f", perhaps {answer.label}"
    return f"{answer.name}: {now} ({answer.probability:.0%}{best}; {spent})"


def summary(seen: Sequence[Seen], frames: Frames) -> str:
    """Medians over the last pictures; what a camera gave in excess."""
    middle = {key: float(np.median([each.milliseconds[key] for each in seen])) for key in seen[0].milliseconds}
    spent = ", ".join(f"{key} {value:.2f} ms" for key, value in middle.items())
    skipped = f"; {frames.dropped} pictures skipped for newer ones" if frames.origin.live else ""
    return f"median of the last {len(seen)}: {spent}{skipped}"


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"give WIDTHxHEIGHT such as 640x480, not {text!r}")
    return int(width), int(height)


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"give a whole number from 1 on, not {text!r}")
    return int(text)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Classify what a camera, a video or pictures show.")
    parser.add_argument("artifact", type=Path, help="a converted model: a folder with manifest.json")
    parser.add_argument(
        "--source",
        default="auto",
        help="auto, rpicam, picamera2, csi[:SENSOR], v4l2[:DEVICE], a picture, a folder of pictures, a video, "
        "or - for Motion-JPEG on standard input (default: the board's camera)",
    )
    parser.add_argument("--model", default="signnet", help="whose preprocessing and labels (default: signnet)")
    parser.add_argument("--threads", type=_positive, default=1)
    parser.add_argument("--size", type=_size, default=(640, 480), help="of the camera's pictures (default: 640x480)")
    parser.add_argument("--rate", type=_positive, default=15, help="pictures a second asked of the camera")
    parser.add_argument("--keep", type=float, help="only the centre square of this share of the shorter side")
    parser.add_argument("--smooth", type=_positive, help="average over about so many pictures (default: 4, files 1)")
    parser.add_argument("--confidence", type=float, default=0.6, help="below it the answer is 'unsure'")
    parser.add_argument("--frames", type=_positive, default=-1, help="stop after so many pictures")
    parser.add_argument("--stall", type=float, default=10.0, help="seconds without a picture that end the loop")
    parser.add_argument("--json", action="store_true", help="one JSON object a picture")
    options = parser.parse_args(words)
    if options.keep is not None and not 0 < options.keep <= 1:
        parser.error(f"--keep takes a share above 0 up to 1, not {options.keep:g}")
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    supervisor = Supervisor()
    try:
        origin = source(options.source, *options.size, options.rate)
        classifier = load(
            options.artifact, options.model, options.threads, options.smooth or (1 if origin.files else 4), options.keep
        )
        with Frames(origin, options.stall) as frames:
            seen = run(classifier, frames, options, supervisor)
            if seen:
                print(supervisor.line(summary(seen, frames)), file=sys.stderr, flush=True)
        return 0
    except DeployLabError as error:
        print(supervisor.line(f"error: {error}", 3), file=sys.stderr, flush=True)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        supervisor.tell("STOPPING=1")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    os._exit(code)  # as the worker does: engines' destructors may hang
