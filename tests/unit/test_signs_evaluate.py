"""Accuracy is counted right, and pictures are read from a folder or refused with a reason."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from deploylab.errors import InputError
from deploylab.signs import CLASSES, dataset, evaluate


@pytest.fixture
def pictures(tmp_path):
    """Two sample photographs with a labels.csv beside their folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = [("file", "label", "note")]
    for sample in dataset.samples()[4:6]:
        (folder / sample.path.name).write_bytes(sample.path.read_bytes())
        rows.append((sample.path.name, sample.label, "made up"))
    with open(tmp_path / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_counts():
    result = evaluate.evaluate(np.array([0, 1, 1, 15]), np.array([0, 1, 0, 15]))
    assert result.count == 4
    assert result.accuracy == 0.75
    assert result.balanced_accuracy == pytest.approx((0.5 + 1 + 1) / 3)
    assert result.per_class()["speed_limit_30"] == (1, 2)
    assert result.mistakes() == [("speed_limit_30", "speed_limit_50", 1)]
    assert json.loads(json.dumps(result.to_json()))["pictures"] == 4


def test_reading_a_folder(pictures):
    images, labels = evaluate.read_folder(pictures)
    assert images.shape == (2, 64, 64, 3)
    assert [CLASSES[label] for label in labels] == ["yield", "stop"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\nx.png,halt\n", "unknown labels halt"),
        ("file,label\n", "at least one row"),
        ("name,kind\na,b\n", "columns file and label"),
        ("file,label\nmissing.png,stop\n", "missing.png"),
    ],
)
def test_bad_labels_are_named(tmp_path, content, message):
    (tmp_path / "labels.csv").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        evaluate.read_folder(tmp_path)


def test_a_folder_without_labels_is_refused(tmp_path):
    with pytest.raises(InputError, match="--labels"):
        evaluate.read_folder(tmp_path)


def test_the_command_prints_draws_and_writes(pictures, tmp_path):
    figure, report = tmp_path / "confusion.png", tmp_path / "report.json"
    app = Typer()
    app.command()(evaluate.main)
    arguments = ["--folder", str(pictures), "--figure", str(figure), "--json", str(report)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "100.0%" in result.output
    assert Image.open(figure).size[0] > 500
    assert json.loads(report.read_text(encoding="utf-8"))["accuracy"] == 1.0


def test_the_command_fails_with_a_message(tmp_path):
    app = Typer()
    app.command()(evaluate.main)
    result = CliRunner().invoke(app, ["--folder", str(tmp_path)])
    assert result.exit_code == 1
    assert "error:" in result.output
    assert "Traceback" not in result.output
