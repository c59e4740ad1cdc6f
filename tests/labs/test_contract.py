"""Every lab keeps the contract, and labs broken on purpose show that the contract would notice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import nbformat
import pytest

import lab_contract as contract
from graders import solutions
from lab_contract import Lab

LABS = contract.labs()
README = contract.README.read_text(encoding="utf-8")

# Skips that are allowed when everything is installed: hardware that this machine lacks, never a missing package.
ALLOWED_TO_SKIP = {f"needs hardware: {name}" for name in contract.HARDWARE}


def test_the_first_labs_exist():
    assert [lab.name for lab in LABS][:2] == ["00_start_here", "01_measure_honestly"]


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.name)
def test_the_lab_keeps_the_contract(lab):
    assert contract.broken_rules(lab, README) == []


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.name)
def test_the_lab_is_skipped_for_hardware_only(lab):
    assert set(contract.reasons_to_skip(lab.meta)) <= ALLOWED_TO_SKIP


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.name)
def test_solutions_and_exercises_are_the_same_set(lab):
    module = solutions(lab.name)
    assert lab.exercises
    assert all(callable(getattr(module, name)) for name in lab.exercises)


def test_the_course_table_lists_the_labs_in_order():
    assert contract.with_table(README, LABS) == README


# ---------------------------------------------------------------------------------------------------------------------
# Labs broken on purpose, each from a lab that keeps the contract


def sound() -> Lab:
    return Lab(LABS[0].path, copy.deepcopy(LABS[0].notebook))


def checked_cell(lab: Lab) -> nbformat.NotebookNode:
    return next(cell for cell in lab.code if contract.CHECKED in cell.metadata.get("tags", ()))


def heading_cell(lab: Lab, word: str) -> nbformat.NotebookNode:
    return next(cell for cell in lab.notebook.cells if f"# {word}" in cell.source)


def drop_output(lab: Lab) -> None:
    checked_cell(lab).outputs = []


def strip(lab: Lab) -> None:
    for cell in lab.code:
        cell.outputs, cell.execution_count = [], None


def untag(lab: Lab) -> None:
    for cell in lab.code:
        cell.metadata.pop("tags", None)


def swap_two_cells(lab: Lab) -> None:
    first, second = lab.code[2], lab.code[3]
    first.execution_count, second.execution_count = second.execution_count, first.execution_count


def add_line(line: str) -> Callable[[Lab], None]:
    def change(lab: Lab) -> None:
        lab.code[3].source += f"\n{line}"

    return change


def say(text: str) -> Callable[[Lab], None]:
    def change(lab: Lab) -> None:
        heading_cell(lab, "Recap").source += f"\n\n{text}"

    return change


def set_meta(key: str, value: object) -> Callable[[Lab], None]:
    def change(lab: Lab) -> None:
        lab.notebook.metadata["deploylab"][key] = value

    return change


def print_to(name: str, text: str) -> Callable[[Lab], None]:
    def change(lab: Lab) -> None:
        lab.code[0].outputs.append(nbformat.v4.new_output("stream", name=name, text=text))

    return change


def store_error(lab: Lab) -> None:
    lab.code[0].outputs.append(nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[]))


def store_widget(lab: Lab) -> None:
    data = {"application/vnd.jupyter.widget-view+json": {}}
    lab.code[0].outputs.append(nbformat.v4.new_output("display_data", data=data))


def skip_without_reason(lab: Lab) -> None:
    lab.code[3].metadata["tags"] = [contract.SKIPPED]


def skip_by_comment(lab: Lab) -> None:
    lab.code[3].source = "# NBVAL_SKIP\n" + lab.code[3].source


def import_engine_first(lab: Lab) -> None:
    lab.code[0].source = "import onnxruntime\n" + lab.code[0].source


def remove_figures(lab: Lab) -> None:
    for cell in lab.code:
        cell.outputs = [output for output in cell.outputs if "data" not in output]


def rename_section(word: str) -> Callable[[Lab], None]:
    def change(lab: Lab) -> None:
        cell = heading_cell(lab, word)
        cell.source = cell.source.replace(f"# {word}", "# Something else")

    return change


def drop_check(lab: Lab) -> None:
    cell = next(cell for cell in lab.code if "check." in cell.source)
    cell.source = cell.source[: cell.source.index("check.")].rstrip()


def unknown_exercise(lab: Lab) -> None:
    lab.code[3].source += "\n\n\ndef unheard_of(x):\n    return ...\n\n\ncheck.unheard_of(unheard_of)"


def fill_up(lab: Lab) -> None:
    lab.notebook.cells += [nbformat.v4.new_markdown_cell("more") for _ in range(30)]


def bloat(lab: Lab) -> None:
    lab.code[0].outputs.append(nbformat.v4.new_output("stream", name="stdout", text="x" * 400_000))


def keep_editor_state(lab: Lab) -> None:
    lab.code[0].metadata["collapsed"] = False


def other_kernel(lab: Lab) -> None:
    lab.notebook.metadata["kernelspec"] = {"display_name": "my env", "language": "python", "name": "my-env"}


FAULTS = [
    (drop_output, "a checked cell has no stored output"),
    (strip, "a checked cell has no stored output"),
    (untag, "0 cells are tagged"),
    (swap_two_cells, "not 1 to"),
    (add_line("!pip install onnxruntime"), "installs something"),
    (add_line("%pip install onnxruntime"), "installs something"),
    (add_line("!{sys.executable} -m pip install onnxruntime"), "installs something"),
    (add_line('subprocess.run([sys.executable, "-m", "pip", "install", "x"])'), "installs something"),
    (add_line('os.system("conda install -y x")'), "installs something"),
    (add_line("!apt-get install -y x"), "installs something"),
    (add_line('open("/home/somebody/model.onnx")'), "a path of a machine"),
    (print_to("stdout", "saved to /tmp/model.onnx"), "a path of a machine"),
    (print_to("stdout", str(contract.ROOT)), "path of"),
    (print_to("stderr", "UserWarning: deprecated"), "a message on stderr"),
    (set_meta("title", "Another title"), "the first heading must be"),
    (set_meta("title", "Another title"), "README's course table"),
    (set_meta("minutes", 7), "the header does not say '7 minutes'"),
    (set_meta("minutes", "45"), "must be a int"),
    (set_meta("objectives", ["fly to the moon"]), "not listed in the header"),
    (set_meta("needs", ["everything"]), "is not among"),
    (set_meta("hardware", ["quantum-computer"]), "is not among"),
    (set_meta("after", ["99_never_written"]), "which is not a lab"),
    (set_meta("author", "me"), "unknown keys"),
    (store_error, "a stored error"),
    (store_widget, "a widget"),
    (skip_without_reason, "without a 'reason'"),
    (skip_by_comment, "use tags, not comments"),
    (import_engine_first, "onnxruntime is imported before deploylab"),
    (remove_figures, "there is no figure"),
    (rename_section("Trap"), "no section 'Trap'"),
    (rename_section("Recap"), "no section 'Recap'"),
    (rename_section("Exercise 1"), "exercises, but"),
    (drop_check, "stubs"),
    (unknown_exercise, "has no function unheard_of"),
    (unknown_exercise, "has no check unheard_of"),
    (fill_up, "a lab has 25 to 45"),
    (bloat, "kB at most"),
    (keep_editor_state, "cell metadata holds more"),
    (other_kernel, "kernelspec must be"),
    (say("It takes 2.5 ms on my laptop."), "a measured number in prose"),
    (say("ONNX Runtime is 3 times faster."), "a measured number in prose"),
    (add_line("long_line = " + "+".join("1" * 60)), "characters; 96 at most"),
    (add_line("\n".join(f"line_{i} = {i}" for i in range(41))), "a code cell of"),
]


@pytest.mark.parametrize(("fault", "complaint"), FAULTS)
def test_the_contract_notices(fault, complaint):
    lab = sound()
    fault(lab)
    broken = contract.broken_rules(lab, README)
    assert any(complaint in sentence for sentence in broken), broken


def test_a_readme_without_the_markers_is_an_error():
    with pytest.raises(ValueError, match="lacks the markers"):
        contract.with_table("# No table here", LABS)


def test_a_package_is_found_however_its_name_is_written(monkeypatch):
    """Names differ in case, and in dots, dashes and underscores between a requirement and what is installed."""
    requirements = ["Backports_StrEnum; extra == 'mobile'", "NBVAL; extra == 'mobile'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requirements)
    names = [SimpleNamespace(metadata={"Name": name}) for name in ("backports.strenum", "nbval")]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: names)
    assert contract.reasons_to_skip({"needs": ["mobile"]}) == []


def test_a_missing_extra_is_a_reason_to_skip(monkeypatch):
    from importlib import metadata

    monkeypatch.setattr(metadata, "requires", lambda name: ['surely-not-installed>=1; extra == "mobile"', "torch"])
    assert contract.reasons_to_skip({"needs": ["mobile"]}) == ["needs the extra 'mobile': missing surely-not-installed"]
    assert contract.reasons_to_skip({"needs": ["serving"]}) == []
