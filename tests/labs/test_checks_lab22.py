"""The graders of lab 22, graded: they name each planted mistake."""

from __future__ import annotations

import ncnn
import numpy as np
import pytest

from deploylab.checks import lab22 as check
from graders import solutions, verdict

right = solutions("22_ncnn")


def numbers_only(layer):
    return right.weight_bytes(layer) // 4


def without_flag(layer):
    return max(right.weight_bytes(layer) - 4, 0)


def always_biased(layer):
    return right.weight_bytes(layer) + (32 if layer.type == "Convolution" and 5 not in layer.params else 0)


def never_biased(layer):
    return right.weight_bytes(layer) - 4 * layer.params.get(0, 0) * layer.params.get(5, 0)


def one_bias(layer):
    return never_biased(layer) + 4 * layer.params.get(5, 0)


def flagged_bias(layer):
    return right.weight_bytes(layer) + 4 * layer.params.get(5, 0)


def convolutions_only(layer):
    return right.weight_bytes(layer) if layer.type == "Convolution" else 0


def keys_of_a_convolution(layer):
    params = layer.params
    size = 4 + 4 * (params.get(6, 0) + params.get(5, 0) * params.get(0, 0))
    return size if layer.type != "ReLU" else 0


WRONG_WEIGHT_BYTES = [
    (numbers_only, "takes 868 bytes, you found 217"),
    (lambda layer: layer.params.get(6, 0), "You counted numbers"),
    (without_flag, "begin with a flag"),
    (always_biased, "a key that is missing"),
    (never_biased, "The bias of a Convolution is missing"),
    (one_bias, "one number for each output channel"),
    (flagged_bias, "Only the weights have a flag"),
    (convolutions_only, "A ConvolutionDepthWise has weights too"),
    (keys_of_a_convolution, "An InnerProduct has other keys"),
    (lambda layer: right.weight_bytes(layer) + 4 * (layer.type == "ReLU"), "A ReLU has no weights"),
    (lambda layer: float(right.weight_bytes(layer)), "whole number, not float"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_WEIGHT_BYTES)
def test_weight_bytes_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.weight_bytes, wrong)


def cut(values):
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def half_up(values):
    return ((values.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)


def in_place(values):
    values.view(np.uint32)[:] = right.bfloat16(values).view(np.uint32)
    return values


def as_bits(values):
    return right.bfloat16(values).view(np.uint32)


def through_float16(values):
    small = np.abs(values) < 60000
    return np.where(small, right.bfloat16(values), np.inf).astype(np.float32)


WRONG_BFLOAT16 = [
    (cut, "always rounds towards zero"),
    (half_up, "they go to the even neighbour"),
    (in_place, "changed its argument"),
    (as_bits, "Return float32, not uint32"),
    (lambda values: values.copy(), "Nothing was rounded"),
    (lambda values: values.astype(np.float16).astype(np.float32), "That is float16"),
    (through_float16, "Very large or very small"),
    (lambda values: right.bfloat16(values)[:2], "became (2,)"),
    (lambda values: list(right.bfloat16(values)), "Return an array, not list"),
    (lambda values: right.bfloat16(values) * np.float32(1.01), "One third becomes"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_BFLOAT16)
def test_bfloat16_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.bfloat16, wrong)


def variant(
    prepare=lambda photo: np.ascontiguousarray(photo, np.float32), clone=True, checked=(True, True), out=np.array
):
    def infer(net, photo):
        photo = prepare(photo)
        with net.create_extractor() as extractor:
            mat = ncnn.Mat(photo)
            code = extractor.input("in0", mat.clone() if clone else mat)
            if code and checked[0]:
                raise RuntimeError
            code, answer = extractor.extract("out0")
            if code and checked[1]:
                raise RuntimeError
            return out(answer)

    return infer


def refusing_by_assertion(net, photo):
    try:
        return right.infer_guarded(net, photo)
    except RuntimeError as error:
        raise AssertionError("no") from error


def with_one_extractor():
    kept = {}

    def infer(net, photo):
        photo = np.ascontiguousarray(photo, np.float32)
        if net not in kept:
            kept[net] = net.create_extractor()
        codes = [kept[net].input("in0", ncnn.Mat(photo).clone()), kept[net].extract("out0")[0]]
        if any(codes):
            raise RuntimeError
        return np.array(kept[net].extract("out0")[1])

    return infer


def changing(net, photo):
    answer = right.infer_guarded(net, photo)
    photo[0] = 0
    return answer


WRONG_INFER = [
    (variant(lambda photo: photo), "ncnn ignores strides"),
    (variant(lambda photo: photo.astype(np.float32)), "ncnn ignores strides"),
    (variant(np.ascontiguousarray), "the Mat has 8 bytes a number"),
    (variant(clone=False), "Clone it"),
    (variant(checked=(False, True)), "input() returned -1"),
    (variant(checked=(True, False)), "extract() returned -100"),
    (variant(out=lambda mat: mat), "Return a NumPy array, not Mat"),
    (variant(out=lambda mat: np.array(mat)[:2]), "is not what extract('out0') gave"),
    (variant(lambda photo: np.ascontiguousarray(photo[0], np.float32)), "the Mat has 1 x 3 x 4 numbers"),
    (refusing_by_assertion, "raise a RuntimeError, not AssertionError"),
    (with_one_extractor(), "Two inferences used one extractor"),
    (changing, "changed the photo"),
    (lambda net, photo: photo, "Your function ran nothing"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_INFER)
def test_infer_guarded_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.infer_guarded, wrong)


def test_the_guarded_inference_runs_a_real_network_that_works_in_place(tmp_path):
    """Its first layer doubles in place, which crashes on a Mat that points into an array."""
    param = tmp_path / "twice.param"
    param.write_text("7767517\n2 2\nInput in0 0 1 in0\nBinaryOp twice 1 1 in0 out0 0=2 1=1 2=2.0\n")
    param.with_suffix(".bin").touch()
    net = ncnn.Net()
    net.opt.num_threads = 1
    assert net.load_param(str(param)) == 0
    assert net.load_model(str(param.with_suffix(".bin"))) == 0
    photo = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)
    assert np.array_equal(right.infer_guarded(net, photo), 2 * photo)
