"""The graders of lab 02, graded: they name each planted mistake."""

from __future__ import annotations

import io

import numpy as np
import pytest
import requests
from flask import abort
from PIL import Image

from deploylab.checks import lab02 as check
from graders import solutions, verdict

right = solutions("02_flask_serving")
FORM = {"timeout": 5}


def raw(url, data, kind="image/jpeg"):
    return requests.post(url, data, headers={"Content-Type": kind}, timeout=5)


def asking(form_answer, raw_answer=raw):
    """A client whose two ways to upload are given, and the rest is right."""

    def attempt(url, data, form):
        answer = form_answer(url, data) if form else raw_answer(url, data)
        answer.raise_for_status()
        return answer.json()

    return attempt


def as_form(url, data, field="file", **options):
    return requests.post(url, files={field: data}, **{"timeout": 5, **options})


WRONG_ASK = [
    (asking(lambda url, data: requests.get(url, timeout=5)), "GET arrived"),
    (lambda url, data, form: as_form(url, data) if form else raw(url, data), "answer.json()"),
    (asking(lambda url, data: as_form(url, data, "image")), "called ['image']"),
    (asking(raw), "form=True should send a form"),
    (asking(lambda url, data: requests.post(url, data={"file": "x"}, timeout=5)), "multipart"),
    (asking(as_form, as_form), "form=False should send the bare bytes"),
    (asking(as_form, lambda url, data: requests.post(url, data, timeout=5)), "content type ''"),
    (asking(lambda url, data: as_form(url, data[:100])), "other bytes"),
    (asking(as_form, lambda url, data: raw(url, data[:100])), "other bytes"),
    (lambda url, data, form: (as_form if form else raw)(url, data).json(), "raise_for_status()"),
    (asking(lambda url, data: as_form(url, data, timeout=None)), "waits for ever"),
    (lambda url, data, form: {"top": []}, "nothing arrived"),
    (lambda url, data, form: right.ask(url, data, form)["top"], "you return ["),
    (lambda url, data, form: right.ask(url + "x", data, form), "Your function raised"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_ASK)
def test_ask_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.ask, wrong)


def test_the_grader_leaves_requests_as_it_was(capsys):
    before = requests.Session.send
    verdict(capsys, check.ask, right.ask)
    verdict(capsys, check.ask, lambda *_: 1 / 0)
    assert requests.Session.send is before


def opened(data):
    return Image.open(io.BytesIO(data))


def without(step):
    """The right way to decode with one step left out or wrong."""

    def decode(data, max_bytes, max_pixels):
        if step != "empty" and not data:
            abort(400, "empty")
        if step != "bytes" and len(data) > max_bytes:
            abort(413, "bytes")
        try:
            image = Image.open(io.BytesIO(data), formats=None if step == "formats" else ("JPEG", "PNG", "WEBP"))
        except Image.UnidentifiedImageError:
            abort(400 if step == "415" else 415, "kind")
        if step == "late":
            image.load()
        limit = max_pixels + 1000 if step == "one off" else max_pixels
        if step != "pixels" and image.width * image.height > limit:
            abort(413, "pixels")
        try:
            pixels = np.array(image if step == "RGB" else image.convert("RGB"))
        except OSError:
            if step == "escape":
                raise
            if step == "silent":
                abort(400)
            abort(400, "damaged")
        return {"BGR": pixels[..., ::-1], "float": pixels / 255, "image": image}.get(step, pixels)

    return decode


def all_400(data, max_bytes, max_pixels):
    try:
        return without("nothing")(data, max_bytes, max_pixels)
    except Exception:
        abort(400, "bad")


def truncated_allowed(data, max_bytes, max_pixels):
    from PIL import ImageFile

    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        return without("nothing")(data, max_bytes, max_pixels)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


WRONG_DECODE = [
    (without("empty"), "For an empty upload you answer 415"),
    (without("bytes"), "More bytes than max_bytes was let pass"),
    (without("formats"), "A GIF, which Pillow knows and we do not serve was let pass"),
    (without("415"), "For a text file you answer 400. It deserves 415"),
    (without("pixels"), "look at image.size first"),
    (without("late"), "you let OSError escape"),
    (without("one off"), "one row above max_pixels"),
    (without("escape"), "you let OSError escape"),
    (without("silent"), "Say why as well"),
    (without("RGB"), "convert('RGB')"),
    (without("BGR"), "red and blue swapped?"),
    (without("float"), "should be uint8"),
    (without("image"), "should give a NumPy array"),
    (all_400, "For a text file you answer 400"),
    (truncated_allowed, "A truncated JPEG was let pass"),
    (lambda data, *_: np.array(opened(data).convert("RGB")), "becomes a 500"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_DECODE)
def test_decode_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.decode, wrong)


def largest_factor(profile, offers):
    return max(offers, key=lambda name: offers[name][1])


def largest_stage(profile, offers):
    return max(offers, key=lambda name: profile[offers[name][0]])


def upside_down(profile, offers):
    return max(offers, key=lambda name: profile[offers[name][0]] * (1 - offers[name][1]))


WRONG_BEST_OFFER = [
    (largest_factor, "the largest factor"),
    (largest_stage, "the largest stage"),
    (upside_down, "you take 'other filter'"),
    (lambda profile, offers: max(profile, key=profile.get), "Return the name of an offer"),
    (lambda profile, offers: 4.0, "Return the name of an offer"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_BEST_OFFER)
def test_best_offer_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.best_offer, wrong)


def share_right(ask, photos):
    return np.mean([ask(data)[0]["label"] == label for data, label in photos])


def by_share_alone(ask, photos):
    return "healthy" if share_right(ask, photos) > 0.9 else "bgr"


def never_repeats(ask, photos):
    if share_right(ask, photos) > 0.9:
        return "healthy"
    swapped = [(right.swap_red_and_blue(data), label) for data, label in photos]
    return "bgr" if share_right(ask, swapped) > 0.5 else "other"


def no_swap(ask, photos):
    found = right.find_fault(ask, photos)
    return "bgr" if found == "other" else found


def swaps_too_late(ask, photos):
    found = right.find_fault(ask, photos)
    return "other" if found == "bgr" else found


WRONG_FIND_FAULT = [
    (lambda ask, photos: "healthy", "takes red for blue"),
    (lambda ask, photos: "broken", "Return one of 'healthy'"),
    (by_share_alone, "while the answers vary, nothing else can be concluded"),
    (never_repeats, "training mode"),
    (no_swap, "Wrong answers alone do not prove BGR"),
    (swaps_too_late, "right as soon as you swap the colours"),
    (lambda ask, photos: "bgr", "answers as it should"),
    (lambda ask, photos: ask(photos[0]), "Your function raised"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_FIND_FAULT)
def test_find_fault_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.find_fault, wrong)


def test_the_planted_servers_differ_as_they_should():
    photos = check._photos()
    share = {fault: share_right(ask, photos) for fault, ask in check.planted_servers().items()}
    assert share["healthy"] == 1
    assert max(share[fault] for fault in share if fault != "healthy") < 0.5
