"""The Open Inference Protocol, spoken with by a client that is not ours: tritonclient."""

import base64
import json

import numpy as np
import pytest
import requests
import serving_support as support
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from deploylab import image
from deploylab.serving import Limits, Predictor, create_app
from deploylab.signs import CLASSES

LABELS = ("stop", "yield", "keep_left")


@pytest.fixture(scope="module")
def predictor():
    with_limits = Limits(max_images=4, max_bytes=2_000_000)
    predictor = Predictor.load(limits=with_limits)
    yield predictor
    predictor.close()


@pytest.fixture(scope="module")
def address(predictor):
    with support.served(create_app(predictor, limits=predictor.limits)) as address:
        yield address


@pytest.fixture
def client(address):
    with InferenceServerClient(address) as client:
        yield client


@pytest.fixture(scope="module")
def pictures():
    return [support.sample(label) for label in LABELS]


@pytest.fixture(scope="module")
def tensor(predictor, pictures):
    return np.concatenate([predictor.preprocess(picture) for picture in pictures])


def tensor_input(x: np.ndarray, binary: bool = True) -> InferInput:
    given = InferInput("input", list(x.shape), "FP32")
    given.set_data_from_numpy(x, binary_data=binary)
    return given


def picture_input(pictures: list[bytes]) -> InferInput:
    given = InferInput("image", [len(pictures)], "BYTES")
    given.set_data_from_numpy(np.array(pictures, object))
    return given


def test_the_server_says_what_it_is(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    about = client.get_server_metadata()
    assert about["name"] == "deploylab"
    assert "binary_tensor_data" in about["extensions"]


def test_both_models_say_what_they_take(client):
    about = client.get_model_metadata("signnet")
    assert about["versions"] == ["1"]
    assert about["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 64, 64]}]
    assert about["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, len(CLASSES)]}]
    about = client.get_model_metadata("signnet-images", "1")
    assert about["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in about["outputs"]] == ["probabilities", "label"]
    assert client.is_model_ready("signnet")
    assert client.is_model_ready("signnet-images", "1")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_a_tensor_gives_the_engines_own_output(client, predictor, tensor, binary_in, binary_out):
    wanted = [InferRequestedOutput("output", binary_data=binary_out)]
    result = client.infer("signnet", [tensor_input(tensor, binary_in)], outputs=wanted, request_id="seven")
    assert result.get_response()["id"] == "seven"
    assert result.get_response()["model_name"] == "signnet"
    assert result.as_numpy("output").dtype == np.float32
    np.testing.assert_allclose(result.as_numpy("output"), predictor.logits(tensor), rtol=0, atol=1e-5)


def test_pictures_give_probabilities_and_labels(client, predictor, pictures):
    result = client.infer("signnet-images", [picture_input(pictures)], model_version="1")
    assert [text.decode() for text in result.as_numpy("label")] == list(LABELS)
    np.testing.assert_allclose(result.as_numpy("probabilities"), predictor.probabilities(pictures), atol=1e-6)


def test_classification_names_the_best_classes(client, tensor):
    wanted = [InferRequestedOutput("output", class_count=2)]
    rows = client.infer("signnet", [tensor_input(tensor)], outputs=wanted).as_numpy("output")
    assert rows.shape == (3, 2)
    first = [text.decode().split(":") for text in rows[:, 0]]
    assert [label for _, _, label in first] == list(LABELS)
    assert [int(index) for _, index, _ in first] == [CLASSES.index(label) for label in LABELS]
    assert all(
        float(best) >= float(text.decode().split(":")[0]) for (best, _, _), text in zip(first, rows[:, 1], strict=True)
    )


def test_only_the_wanted_outputs_come(client, pictures):
    result = client.infer("signnet-images", [picture_input(pictures[:1])], outputs=[InferRequestedOutput("label")])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["label"]


def test_plain_json_without_a_client(address, pictures):
    """Flat data, nested data and a picture in base64, written by hand."""
    flat = {"name": "input", "datatype": "FP32", "shape": [1, 3, 64, 64], "data": [0.5] * (3 * 64 * 64)}
    nested = flat | {"data": np.full((1, 3, 64, 64), 0.5).tolist()}
    answers = [infer(address, {"inputs": [given]}).json()["outputs"][0]["data"] for given in (flat, nested)]
    assert answers[0] == answers[1]
    assert len(answers[0]) == len(CLASSES)
    text = base64.b64encode(pictures[0]).decode()
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    outputs = infer(address, {"inputs": [given]}, "signnet-images").json()["outputs"]
    assert outputs[1] == {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["stop"]}


def infer(address: str, head: object, model: str = "signnet", tail: bytes = b"", **headers: str) -> requests.Response:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    url = f"http://{address}/v2/models/{model}/infer"
    return requests.post(url, data=text + tail, headers=headers, timeout=60)


GOOD = {"name": "input", "datatype": "FP32", "shape": [1, 3, 64, 64], "data": [0.0] * 12288}
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [""]}
LENGTH = "Inference-Header-Content-Length"


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([], "object, got a list"),
        ({}, "inputs must be a list of objects, got nothing"),
        ({"inputs": [1]}, "list of objects"),
        ({"inputs": [GOOD, GOOD]}, "takes one input, 'input'; the request has 2"),
        ({"inputs": [GOOD | {"name": "x"}]}, "name must be 'input'"),
        ({"inputs": [GOOD | {"datatype": "FP64"}]}, "datatype must be 'FP32', got \"FP64\""),
        ({"inputs": [GOOD | {"shape": [1, 64, 64, 3]}]}, r"must be [n, 3, 64, 64]"),
        ({"inputs": [GOOD | {"shape": [0, 3, 64, 64]}]}, "n from 1"),
        ({"inputs": [GOOD | {"shape": [True, 3, 64, 64]}]}, "n from 1"),
        ({"inputs": [GOOD | {"shape": "all"}]}, "n from 1"),
        ({"inputs": [GOOD | {"data": [1.0]}]}, "announces 12288 numbers, data has 1"),
        ({"inputs": [GOOD | {"data": [[1.0], [1.0, 2.0]]}]}, "nested evenly"),
        ({"inputs": [GOOD | {"data": ["1.0"] * 12288}]}, "must be numbers"),
        ({"inputs": [GOOD | {"data": [None] * 12288}]}, "must be numbers"),
        ({"inputs": [GOOD | {"data": [True] * 12288}]}, "must be numbers"),
        ({"inputs": [GOOD | {"data": [10**400]}]}, "must be numbers"),
        ({"inputs": [GOOD | {"data": [1e300] * 12288}]}, "NaN or infinity"),
        ({"inputs": [GOOD | {"data": [float("nan")] * 12288}]}, "NaN or infinity"),
        ({"inputs": [{key: GOOD[key] for key in ("name", "datatype", "shape")}]}, "needs data"),
        ({"inputs": [GOOD | {"parameters": 3}]}, "parameters must be an object"),
        ({"inputs": [GOOD | {"parameters": {"binary_data_size": 7}}]}, "binary_data_size is 7, but 0 bytes follow"),
        ({"inputs": [GOOD], "outputs": [{"name": "x"}]}, 'no output "x"; there are: output'),
        ({"inputs": [GOOD], "outputs": [{"name": "output", "parameters": {"classification": -1}}]}, "classification"),
    ],
)
def test_a_wrong_request_is_told_in_the_protocols_form(address, head, told):
    reply = infer(address, head)
    assert reply.status_code == 400
    assert list(reply.json()) == ["error"]
    assert told in reply.json()["error"]


@pytest.mark.parametrize(
    ("data", "status", "told"),
    [
        (["%%%"], 400, "base64"),
        ([3], 400, "base64"),
        ([""], 400, "Picture 0: the picture is empty"),
        ([base64.b64encode(b"GIF89a").decode()], 415, "Picture 0: not a picture"),
        (["a", "b"], 400, "announces 1 pictures, data has 2"),
    ],
)
def test_a_wrong_picture_is_told(address, data, status, told):
    reply = infer(address, {"inputs": [IMAGE | {"data": data}]}, "signnet-images")
    assert reply.status_code == status
    assert told in reply.json()["error"]


@pytest.mark.parametrize(
    ("tail", "told"),
    [
        (b"\1\0", "holds 0"),
        (b"\x09\0\0\0abc", "should have 9 bytes, only 3 are left"),
        (b"\1\0\0\0ab", "1 bytes are left over"),
        (b"\xff\xff\xff\xff", "should have 4294967295 bytes"),
    ],
)
def test_wrong_binary_data_is_told(address, tail, told):
    head = json.dumps({"inputs": [IMAGE | {"parameters": {"binary_data_size": len(tail)}}]}).encode()
    reply = infer(address, head, "signnet-images", tail, **{LENGTH: str(len(head))})
    assert reply.status_code == 400
    assert told in reply.json()["error"]


@pytest.mark.parametrize("length", ["x", "-1", "999999", "9" * 5000])
def test_a_wrong_header_length_is_told(address, length):
    reply = infer(address, {"inputs": [GOOD]}, **{LENGTH: length})
    assert reply.status_code == 400
    assert LENGTH in reply.json()["error"]


def test_bounds_hold_here_too(address):
    rows = np.zeros((5, 3, 64, 64), np.float32)
    reply = infer(address, {"inputs": [GOOD | {"shape": list(rows.shape), "data": []}]})
    assert (reply.status_code, "at most" in reply.json()["error"]) == (413, True)
    reply = infer(address, b" " * 2_000_001)
    assert reply.status_code == 413
    assert "2,000,000 bytes" in reply.json()["error"]
    huge = support.encoded(support.Image.new("L", (9000, 9000)), "PNG")
    data = [base64.b64encode(huge).decode()]
    assert infer(address, {"inputs": [IMAGE | {"data": data}]}, "signnet-images").status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nothing", 404),
        ("GET", "/v2/models/signnet/versions/2", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/signnet/infer", 405),
        ("POST", "/v2/models/signnet", 405),
        ("POST", "/v2/models/nothing/infer", 404),
    ],
)
def test_unknown_addresses(address, method, path, status):
    reply = requests.request(method, f"http://{address}{path}", timeout=60)
    assert reply.status_code == status
    assert list(reply.json()) == ["error"]


def test_the_client_understands_our_errors(client, tensor):
    with pytest.raises(InferenceServerException, match="there is no model 'nothing'; there are: signnet"):
        client.infer("nothing", [tensor_input(tensor)])
    with pytest.raises(InferenceServerException, match=r"n, 3, 64, 64"):
        client.infer("signnet", [tensor_input(tensor[:, :, :32])])


def test_not_ready_while_draining(predictor, tensor):
    app = create_app(predictor)
    with support.served(app) as address, InferenceServerClient(address) as client:
        app.service.drain()
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("signnet")
        with pytest.raises(InferenceServerException, match="shutting down"):
            client.infer("signnet", [tensor_input(tensor)])


def test_scaled_decoding_is_what_pictures_are_served_with(predictor):
    assert predictor.preprocess == image.Preprocessor(64, reducing_gap=2.0)
