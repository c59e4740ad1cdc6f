"""Lab 04's web page, seen from Python: the folder a server hands out, and a browser that tries the page.

The page is built from ``labs/web`` by the set-up (``make web``), where Node.js is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploylab import files, models, paths
from deploylab.errors import ServerError
from deploylab.serving import artifacts

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_SAMPLES_SHOWN = 6


def source() -> Path:
    """The page's source: TypeScript, styles, tests."""
    return paths.root() / "labs" / "web"


def missing() -> str | None:
    """Why there is no page to serve, for a person; None if there is one."""
    if (_folder() / "index.html").is_file():
        return None
    if not shutil.which("npm"):
        return (
            "the web page is not built: it needs Node.js 18 or later with npm (README, What it needs); then `make web`"
        )
    return "the web page is not built: run `make web`"


def no_browser() -> str | None:
    """Why the page cannot be tried in a browser here, for a person; None if it can."""
    if reason := missing():
        return reason
    if not shutil.which("node"):
        return "the test of the page needs Node.js 18 or later"
    if not (source() / "node_modules" / "playwright-core").is_dir():
        return "the page's packages are not installed: run `make web`"
    if not _browser():
        return "the test of the page needs Chromium (Debian: apt install chromium)"
    return None


def site(model: str = "signnet") -> Path:
    """The folder to serve: the built page, the network as ``model/NAME.onnx``, and what the page must know about it.

    Give it to ``create_app(site=...)`` or ``deploylab serve --site``. Raises :class:`ServerError` if the page is not
    built, and the errors of :func:`deploylab.serving.artifacts.prepare`.
    """
    if reason := missing():
        raise ServerError(reason)
    onnx = artifacts.prepare(model, "onnxruntime") / "model.onnx"
    info = models.info(model)
    samples = _sample_photos()
    description = {
        "model": f"model/{model}.onnx",
        "labels": info.labels,
        "size": info.preprocessor.size,
        "samples": [{"name": photo.name, "url": f"model/{photo.name}"} for photo in samples],
    }
    for photo in samples:
        _put(photo.read_bytes(), photo.name)
    _put(onnx.read_bytes(), f"{model}.onnx")
    _put(json.dumps(description, indent=1).encode(), "description.json")
    return _folder()


def drive(scenario: str, url: str, photos: Sequence[Path], *, timeout_s: float = 120, **options: Any) -> Any:
    """Let headless Chromium go through a scenario of ``labs/web/e2e/drive.mjs`` at ``url``; what it saw.

    ``options``: ``out``, a folder for pictures of the page; ``cameraFilm``, an MJPEG file that plays the camera;
    ``sizes``, ``colorScheme``, ``scale`` (device pixels a CSS pixel). Raises :class:`ServerError` if there is no
    browser, and with the browser's words if the scenario fails or takes longer than ``timeout_s`` seconds. The browser
    and its profile are gone afterwards.
    """
    if reason := no_browser():
        raise ServerError(reason)
    job = {"scenario": scenario, "url": url, "photos": [str(Path(photo).resolve()) for photo in photos]}
    job |= {"chromium": _browser()} | {name: _text(value) for name, value in options.items()}
    with tempfile.TemporaryDirectory(prefix="deploylab-browser-", ignore_cleanup_errors=True) as temporary:
        said = _run_node(job | {"temporary": temporary}, Path(temporary), timeout_s)
    if "result" not in said:
        raise ServerError(f"the browser failed in {scenario}: {said.get('error', 'no answer')}")
    return said["result"]


def pixels_of(row: dict[str, Any], out: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the scenario ``pipeline`` left in ``out`` for one photo: its pixels as the browser decoded them, uint8
    (H, W, 3), and after the page's resize, uint8 (64, 64, 3)."""
    name, shape = Path(row["photo"]).stem, (row["height"], row["width"], 3)
    decoded = np.fromfile(out / f"{name}.decoded", np.uint8).reshape(shape)
    return decoded, np.fromfile(out / f"{name}.resized", np.uint8).reshape(64, 64, 3)


def tensor_of(mistake: str, photo: Path, out: Path) -> np.ndarray:
    """What the scenario ``wrong`` left in ``out`` for one mistake and photo: float32 (3, 64, 64)."""
    return np.fromfile(out / f"{mistake}-{photo.stem}.tensor", np.float32).reshape(3, 64, 64)


def excerpt(file: str, name: str) -> str:
    """The function or class ``name`` of ``labs/web/FILE``, with the comment above it: for a lab to show."""
    text = (source() / file).read_text(encoding="utf-8")
    found = re.search(
        rf"(?:^/\*\*(?:(?!\*/).)*\*/\n)?^(?:export )?(?:async )?(?:function|class) {name}\b.*?^}}$",
        text,
        re.MULTILINE | re.DOTALL,
    )
    if not found:
        raise ServerError(f"there is no function or class {name} in {file}")
    return found[0]


def _run_node(job: dict[str, Any], temporary: Path, timeout_s: float) -> dict[str, Any]:
    process = subprocess.Popen(
        ["node", "e2e/drive.mjs"],
        cwd=source(),
        env={**os.environ, "TMPDIR": str(temporary), "HOME": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C is for us; the driver sees its standard input close
    )
    errors: list[str] = []
    listener = threading.Thread(target=lambda: errors.append(process.stderr.read()), daemon=True)
    alarm = threading.Timer(timeout_s, process.terminate)
    with process:
        try:
            listener.start()
            alarm.start()
            with contextlib.suppress(BrokenPipeError):  # it ended already; its last words say why
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()  # and stays open: the driver ends when it closes
            said = process.stdout.read()
        except BaseException:
            process.terminate()
            raise
        finally:
            alarm.cancel()
    listener.join()
    if said.strip():
        return json.loads(said)
    late = process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    return {"error": f"no answer within {timeout_s:g} s" if late else "".join(errors)[-2000:]}


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


def _folder() -> Path:
    return paths.build() / "web" / "site"


def _sample_photos() -> list[Path]:
    from deploylab.signs import dataset

    return [sample.path for sample in dataset.samples()[3 : 3 + _SAMPLES_SHOWN]]


def _put(content: bytes, name: str) -> None:
    """Write ``model/NAME`` unless it is there already; complete or not at all."""
    path = _folder() / "model" / name
    if path.is_file() and path.read_bytes() == content:
        return
    files.write(path, content)


def _text(value: Any) -> Any:
    return str(value.resolve()) if isinstance(value, Path) else value
