"""Lab 04's web page in a real browser, and its preprocessing against Python's. Skipped without Node or Chromium."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import psutil
import pytest
from PIL import Image

from deploylab import image
from deploylab.errors import ServerError
from deploylab.serving import background, web
from deploylab.serving.predictor import softmax
from deploylab.signs import dataset

FIXTURE = web.source() / "tests" / "pillow.json"
SMALL = [
    ((7, 5), (4, 4)),
    ((3, 2), (8, 8)),
    ((1, 1), (2, 3)),
    ((16, 9), (16, 4)),
    ((9, 16), (4, 16)),
    ((40, 30), (8, 8)),
]
LARGE = [
    ((640, 480), (64, 64)),
    ((1280, 7), (64, 64)),
    ((2, 1500), (64, 64)),
    ((64, 64), (64, 64)),
    ((333, 777), (64, 64)),
]
DEPENDENCIES = ("dependencies", "devDependencies", "optionalDependencies")
SERVER = """
import sys
from deploylab.serving import create_app, web
from deploylab.serving.predictor import Predictor
create_app(Predictor.load(), site=web.site()).run(port=int(sys.argv[1]), threaded=True)
"""

needs_packages = pytest.mark.skipif(
    not (web.source() / "node_modules" / "vitest").is_dir(), reason="the page's packages are not installed (make web)"
)
needs_browser = pytest.mark.skipif(web.no_browser() is not None, reason=str(web.no_browser()))


def case(size: tuple[int, int], to: tuple[int, int], seed: int) -> dict:
    """Random pixels, half of them at the ends of the range, and what Pillow makes of them."""
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0], 3)
    pixels = np.where(rng.random(shape) < 0.5, rng.integers(0, 2, shape) * 255, rng.integers(0, 256, shape))
    picture = Image.fromarray(pixels.astype(np.uint8))
    expected = picture.resize(to, Image.Resampling.BILINEAR)
    encoded = [base64.b64encode(each.tobytes()).decode() for each in (picture, expected)]
    return {"from": size, "to": to, "pixels": encoded[0], "expected": encoded[1]}


def cases(sizes: list) -> str:
    return json.dumps([case(*size, seed) for seed, size in enumerate(sizes)]) + "\n"


def same_order(size: tuple[int, int], to: tuple[int, int]) -> bool:
    """Whether this Pillow makes its two passes in the order of version 13; it shows in the last bit."""
    rows_first = size[1] <= to[1] or size[1] - to[1] <= 2 * (size[0] - to[0])
    return int(PIL.__version__.split(".")[0]) >= 13 or rows_first


def test_the_fixture_of_the_typescript_tests_is_what_pillow_gives():
    assert FIXTURE.read_text() == cases(SMALL), "run `python tests/unit/test_web_app.py` and look at what changed"


@needs_packages
def test_the_typescript_tests_pass_on_many_more_of_pillows_results(tmp_path):
    rng = np.random.default_rng(0)
    random = [((int(w), int(h)), (int(a), int(b))) for w, h, a, b in rng.integers(1, 90, (40, 4))]
    sizes = [size for size in (*LARGE, *random) if same_order(*size)]
    (tmp_path / "cases.json").write_text(cases(sizes))
    environment = {**os.environ, "PILLOW_CASES": str(tmp_path / "cases.json")}
    command = ["node", "node_modules/vitest/vitest.mjs", "run", "--reporter=json"]
    done = subprocess.run(command, cwd=web.source(), env=environment, capture_output=True, text=True, timeout=120)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    failed = [
        test["fullName"]
        for file in report["testResults"]
        for test in file["assertionResults"]
        if test["status"] != "passed"
    ]
    assert done.returncode == 0, failed or done.stderr[-2000:]
    assert report["numPassedTests"] >= len(sizes) + 20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    port, log = background.free_port(), tmp_path_factory.mktemp("server") / "log.txt"
    with background.start([sys.executable, "-c", SERVER, str(port)], "/readyz", port=port, log=log) as running:
        yield running


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    return [sample.path for sample in dataset.samples()]


def of(label: str) -> Path:
    return next(sample.path for sample in dataset.samples() if sample.label == label)


@needs_browser
def test_both_modes_answer_alike_on_desktop_and_phone_with_nothing_cut_off(server, tmp_path):
    seen = web.drive("answers", server.url, [of("stop"), of("keep_left")], out=tmp_path)
    answers = [row for row in seen if "label" in row]
    assert len(answers) == 8
    for row in answers:
        assert row["label"] == Path(row["photo"]).stem[3:]
        assert row["bars"] == 5
        assert " ms " in row["latency"]
        assert row["announced"].startswith(("Stop, ", "Keep left, "))
        assert row["probability"] in row["announced"]
    for photo in {row["photo"] for row in answers}:  # the server decodes large JPEGs at a smaller scale
        sure = [float(row["probability"].removesuffix(" %")) for row in answers if row["photo"] == photo]
        assert max(sure) - min(sure) < 5
    assert {("in this browser" in row["latency"]) for row in answers if row["place"] == "browser"} == {True}
    for page in (row for row in seen if "isolated" in row):
        assert page == {"size": page["size"], "isolated": True, "overflow": 0, "complaints": []}
    assert {picture.name for picture in tmp_path.iterdir()} == {"desktop.png", "phone.png"}


@needs_browser
def test_what_goes_wrong_is_said_and_the_page_goes_on(server, photos):
    said = web.drive("errors", server.url, [of("stop")])
    assert said["text"] == "This file is not a picture. Choose a photo in the format JPEG, PNG or WebP."
    assert said["large"].startswith("The file is too large: 21.0 MB. At most 20.0 MB are accepted.")
    assert "damaged" in said["damaged, server"]
    assert said["damaged, browser"].startswith("The picture is damaged.")
    assert said["down"].startswith("The server does not answer. Is it still running?")
    assert said["camera"].startswith("The camera was not allowed.")
    assert said["closed"]
    assert said["then"]["label"] == "stop"


@needs_browser
def test_a_photo_from_the_camera_is_recognised_and_the_camera_goes_off(server, tmp_path):
    film = tmp_path / "film.mjpeg"
    film.write_bytes(of("stop").read_bytes() * 2)
    seen = web.drive("camera", server.url, [], cameraFilm=film)
    assert seen["label"] == "stop"
    assert seen["cameraOff"]


@needs_browser
def test_everything_works_without_a_mouse(server):
    seen = web.drive("keyboard", server.url, [of("yield")])
    assert seen["order"] == ["Choose a photo", "Use the camera", "Server", "Sample photo 1", "Choose a photo"]
    assert seen["checked"]
    assert seen["answered"]["label"] == "yield"
    assert seen["afterCamera"] == "Use the camera"


@needs_browser
def test_axe_finds_no_barrier_in_any_state_size_or_colour_scheme(server):
    seen = web.drive("accessibility", server.url, [of("stop")])
    assert len(seen) == 6
    assert [row["broken"] for row in seen if row["broken"]] == []
    assert min(row["passed"] for row in seen) > 20


@needs_browser
def test_the_pixels_are_pythons_on_all_sample_photos(server, photos, tmp_path):
    """Same decoded pixels: the resized ones are equal. Through the browser's own JPEG decoder: at most 2 levels apart,
    which two correct decoders may be (ITU-T T.83 allows 1 a coefficient), and probabilities within 0.01."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(web.site() / "model" / "signnet.onnx"))
    seen = web.drive("pipeline", server.url, photos, out=tmp_path)
    apart = {"decoded": 0, "resized": 0, "probability": 0.0}
    for photo, row in zip(photos, seen, strict=True):
        decoded, resized = web.pixels_of(row, tmp_path)
        np.testing.assert_array_equal(resized, image.SIGNNET.resize(decoded), err_msg=photo.name)
        apart["decoded"] = max(apart["decoded"], levels(decoded, image.decode(photo)))
        apart["resized"] = max(apart["resized"], levels(resized, image.SIGNNET.resize(photo)))
        logits = session.run(None, {session.get_inputs()[0].name: image.SIGNNET(photo)})[0]
        gap = np.abs(softmax(logits) - softmax(np.array([row["logits"]]))).max()
        apart["probability"] = max(apart["probability"], float(gap))
    print(f"largest difference between the browser and Python: {apart}")
    assert apart["decoded"] <= 2
    assert apart["resized"] <= 2
    assert apart["probability"] <= (0.01 if apart["resized"] else 1e-5)


@needs_browser
def test_turned_and_transparent_pictures_are_decoded_as_python_does(server, tmp_path):
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    picture = coarse.resize((90, 60), Image.Resampling.BICUBIC)
    files = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files.append(tmp_path / f"turned{orientation}.jpg")
        picture.save(files[-1], exif=exif, quality=95)
    for name, alpha in (("clear", 0), ("half", 128), ("solid", 255)):
        files.append(tmp_path / f"{name}.png")
        Image.merge("RGBA", [*picture.split(), Image.new("L", picture.size, alpha)]).save(files[-1])
    files.append(tmp_path / "grey.png")
    picture.convert("L").save(files[-1])
    files.append(tmp_path / "lossless.webp")
    picture.save(files[-1], lossless=True)
    for file, row in zip(files, web.drive("pipeline", server.url, files, out=tmp_path), strict=True):
        decoded, _ = web.pixels_of(row, tmp_path)
        expected = image.decode(file)
        assert decoded.shape == expected.shape, file.name
        assert levels(decoded, expected) <= 2, file.name


def levels(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of two pictures in levels of 0..255."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@needs_browser
def test_the_mistakes_of_the_lab_are_far_from_pythons_tensor(server, photos, tmp_path):
    seen = web.drive("wrong", server.url, photos[:4], out=tmp_path)
    assert len(seen) >= 4
    for name in seen:
        for photo in photos[:4]:
            assert np.abs(web.tensor_of(name, photo, tmp_path) - image.SIGNNET(photo)[0]).max() > 10 / 255, name


@needs_browser
def test_a_browser_that_fails_says_why_and_is_gone():
    port = background.free_port()
    with pytest.raises(ServerError, match="ERR_CONNECTION_REFUSED"):
        web.drive("answers", f"http://127.0.0.1:{port}", [])
    with pytest.raises(ServerError, match=r"no answer within 0\.01 s"):
        web.drive("answers", f"http://127.0.0.1:{port}", [], timeout_s=0.01)


@needs_browser
@pytest.mark.skipif(sys.platform != "linux", reason="looks into the process table by a folder's name")
def test_browser_and_profile_go_when_the_program_that_asked_is_killed(server, short_folder):
    code = "import sys; from deploylab.serving import web; web.drive('accessibility', sys.argv[1], sys.argv[2:])"
    environment = {**os.environ, "TMPDIR": str(short_folder)}
    asking = subprocess.Popen([sys.executable, "-c", code, server.url, of("stop")], env=environment)
    try:
        wait_until(lambda: len(processes_with(short_folder)) >= 3)
    finally:
        asking.kill()
        asking.wait()
    wait_until(lambda: not processes_with(short_folder) and not list(short_folder.glob("deploylab-browser-*")))


@pytest.fixture
def short_folder():
    """A profile's path must be short: Chromium makes a socket in it, and a socket's name has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="dl-") as folder:
        yield Path(folder)


def processes_with(folder: Path) -> list[int]:
    """Processes that carry the folder's name in their command line: the browser's."""
    found = psutil.process_iter(["cmdline"])
    return [process.pid for process in found if str(folder) in " ".join(process.info["cmdline"] or ())]


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_without_a_build_the_reason_is_given(monkeypatch, tmp_path):
    monkeypatch.setenv("DEPLOYLAB_HOME", str(tmp_path))
    assert "make web" in web.missing()
    assert web.no_browser() == web.missing()
    with pytest.raises(ServerError, match="the web page is not built"):
        web.site()
    with pytest.raises(ServerError, match="the web page is not built"):
        web.drive("answers", "http://127.0.0.1:1", [])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs Node.js 18 or later" in web.missing()


def test_an_excerpt_is_one_function_with_its_comment():
    text = web.excerpt("src/picture/tensor.ts", "toTensor")
    assert text.startswith("/** Pixel by pixel")
    assert text.count("function") == 1
    assert text.endswith("return tensor;\n}")
    with pytest.raises(ServerError, match="no function or class toTensors in"):
        web.excerpt("src/picture/tensor.ts", "toTensors")


def test_the_lock_file_is_whole_for_every_platform_names_no_registry_and_has_a_hash_for_every_package():
    lock = json.loads((web.source() / "package-lock.json").read_text())["packages"]
    packages = {name: entry for name, entry in lock.items() if name}
    assert all("resolved" not in entry for entry in packages.values())
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    names = {name.rpartition("node_modules/")[2] for name in packages}
    wanted = {needed for entry in lock.values() for kind in DEPENDENCIES for needed in entry.get(kind, ())}
    assert wanted <= names, "a registry that lacks a platform's package makes npm leave it out; see labs/web/README.md"


if __name__ == "__main__":
    FIXTURE.write_text(cases(SMALL))
