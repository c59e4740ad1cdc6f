"""Work on the labs: execute, check, render, list, scaffold.

A lab is source and artefact in one file: ``labs/NN_slug.ipynb``, executed top to bottom, outputs kept.

    python tools/notebooks.py execute            every lab, in place, in order
    python tools/notebooks.py execute 00 01      some labs
    python tools/notebooks.py check              the contract of every lab and README's course table
    python tools/notebooks.py table              rewrite README's course table from the metadata
    python tools/notebooks.py render             HTML under build/render, to look at
    python tools/notebooks.py new 02_flask_serving "Flask serving"
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import nbformat
import typer
from PIL import Image

import lab_contract as contract
from lab_contract import Lab

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, rich_markup_mode=None)
MANY_COLOURS = 1024  # a plot has fewer, smoothed edges and all
Numbers = Annotated[list[str] | None, typer.Argument(help="numbers or names of labs; all of them if none is given")]


@app.command()
def execute(numbers: Numbers = None, timeout: int = 120) -> None:
    """Run labs top to bottom in a fresh kernel, normalise them, check them and write them back."""
    failed = False
    for lab in _chosen(numbers):
        start = time.perf_counter()
        error = run(lab, timeout)
        print(f"{lab.path.name}: {time.perf_counter() - start:.1f} s; slowest cells: {_slowest(lab)}")
        if error:
            print(f"  failed, the file is unchanged: {error}")
        else:
            normalise(lab.notebook)
            write(lab)
            error = _print_broken(lab, readme=None)
        failed = failed or bool(error)
    raise typer.Exit(failed)


@app.command()
def check(numbers: Numbers = None) -> None:
    """Check that labs keep the contract and that README's course table agrees with them."""
    readme = contract.README.read_text(encoding="utf-8") if contract.README.is_file() else ""
    broken = [_print_broken(lab, readme) for lab in _chosen(numbers)]
    raise typer.Exit(any(broken))


@app.command()
def table() -> None:
    """Rewrite the course table between the markers in README.md."""
    try:
        text = contract.with_table(contract.README.read_text(encoding="utf-8"), contract.labs())
    except (OSError, ValueError) as error:
        sys.exit(f"cannot write the course table: {error}")
    contract.README.write_text(text, encoding="utf-8")
    print(contract.table(contract.labs()))


@app.command()
def render(numbers: Numbers = None, out: Path = contract.ROOT / "build" / "render") -> None:
    """Write labs as HTML pages, to look at them as a reader does."""
    from nbconvert import HTMLExporter

    out.mkdir(parents=True, exist_ok=True)
    for lab in _chosen(numbers):
        page, _ = HTMLExporter(embed_images=True).from_notebook_node(
            lab.notebook, resources={"metadata": {"path": str(lab.path.parent), "name": lab.name}}
        )
        target = out / f"{lab.name}.html"
        target.write_text(page, encoding="utf-8")
        print(os.path.relpath(target))


@app.command()
def new(name: str, title: str) -> None:
    """Scaffold a lab with its solutions and its checks: new NN_slug "Title"."""
    target = contract.LABS / f"{name}.ipynb"
    checks = contract.ROOT / "utils" / "deploylab" / "checks" / f"lab{name[:2]}.py"
    solutions = contract.LABS / "solutions" / f"{name}.py"
    for path in (target, checks, solutions):
        if path.exists():
            sys.exit(f"{os.path.relpath(path)} exists already")
    write(Lab(target, normalise(scaffold(name[:2], title))))
    checks.write_text(f'"""Checks of lab {name[:2]}."""\n', encoding="utf-8")
    solutions.write_text(f'"""Solutions of lab {name[:2]}: one function per exercise."""\n', encoding="utf-8")
    print(f"wrote {os.path.relpath(target)}, {os.path.relpath(checks)}, {os.path.relpath(solutions)}")


def run(lab: Lab, timeout: int) -> str:
    """Execute the cells of ``lab.notebook`` in a fresh kernel; return what went wrong, or an empty string."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    lab.notebook.metadata["kernelspec"] = dict(contract.KERNELSPEC)
    client = NotebookClient(
        lab.notebook,
        timeout=timeout,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # it warns about TCP on the local machine
        record_timing=True,  # for the report only; normalise() removes it
        coalesce_streams=True,
        resources={"metadata": {"path": str(lab.path.parent)}},
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without the colours of IPython
    return ""


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove what depends on the machine or the editor, in place: stable cell ids, minimal metadata."""
    notebook.metadata = nbformat.from_dict(
        {
            "deploylab": notebook.metadata.get("deploylab", {}),
            "kernelspec": contract.KERNELSPEC,
            "language_info": {"file_extension": ".py", "name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: set[str] = set()
    for cell in notebook.cells:
        cell.id = _cell_id(cell, seen)
        cell.source = cell.source.rstrip()
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in ("tags", "reason") if key in cell.metadata}
        )
        _shrink_figures(cell)
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    return notebook


def write(lab: Lab) -> None:
    """Write the notebook beside itself and rename it, so that a killed run leaves the old file whole."""
    temporary = lab.path.with_suffix(".tmp")
    nbformat.write(lab.notebook, temporary)
    temporary.replace(lab.path)


def scaffold(number: str, title: str) -> nbformat.NotebookNode:
    """A lab with the sections of the anatomy and nothing in them."""
    markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    objective = "say what the reader can do afterwards"
    header = f"# {number} {title}\n\n> One line: what this lab promises.\n\n"
    header += f"## Objectives\n\n- {objective}\n\n**Time:** about 30 minutes. **Before it:** nothing."
    stub = "def name(x):\n    return ...\n\n\ncheck.name(name)"
    cells = [
        markdown(header),
        markdown("## The question"),
        code("import deploylab\n\nprint(deploylab.__version__)"),
        markdown("## Trap: what goes wrong"),
        markdown("## Exercise 1: what to write"),
        code(stub),
        markdown("## Recap"),
        markdown("## Read on"),
    ]
    meta = {"title": title, "minutes": 30, "needs": [], "hardware": [], "objectives": [objective], "after": []}
    return nbformat.v4.new_notebook(cells=cells, metadata={"deploylab": meta})


def _slowest(lab: Lab, count: int = 3) -> str:
    """The cells that took longest, by execution count and seconds."""
    taken = {}
    for cell in lab.code:
        marks = cell.metadata.get("execution", {})
        if "shell.execute_reply" in marks and "iopub.execute_input" in marks:
            stamps = (marks[key] for key in ("iopub.execute_input", "shell.execute_reply"))
            begin, end = (datetime.fromisoformat(stamp.replace("Z", "+00:00")) for stamp in stamps)  # Z: Python 3.11
            taken[cell.execution_count] = (end - begin).total_seconds()
    slowest = sorted(taken, key=taken.get, reverse=True)[:count]
    return ", ".join(f"[{number}] {taken[number]:.1f} s" for number in slowest)


def _shrink_figures(cell: nbformat.NotebookNode) -> None:
    """Store plots as PNG with a palette of 256 colours and photographs as JPEG: a fraction of the bytes."""
    for output in cell.get("outputs", ()):
        encoded = output.get("data", {}).get("image/png")
        image = Image.open(io.BytesIO(base64.b64decode(encoded))) if encoded else None
        if image is not None and image.mode != "P":
            image, buffer = image.convert("RGB"), io.BytesIO()
            if image.getcolors(MANY_COLOURS):
                image.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
            else:
                image.save(buffer, "JPEG", quality=68, optimize=True)
                del output.data["image/png"]
            kind = "image/png" if "image/png" in output.data else "image/jpeg"
            output.data[kind] = base64.b64encode(buffer.getvalue()).decode()


def _cell_id(cell: nbformat.NotebookNode, seen: set[str]) -> str:
    """An id from what the cell says, so that it changes only when the cell does."""
    copy = 0
    while True:
        text = f"{cell.cell_type} {copy} {cell.source.rstrip()}"
        name = hashlib.sha256(text.encode()).hexdigest()[:8]
        if name not in seen:
            seen.add(name)
            return name
        copy += 1


def _chosen(numbers: list[str] | None) -> list[Lab]:
    every = contract.labs()
    chosen = [lab for lab in every if not numbers or lab.number in numbers or lab.name in numbers]
    unknown = set(numbers or ()) - {lab.number for lab in every} - {lab.name for lab in every}
    if unknown or not chosen:
        sys.exit(
            f"no such lab: {', '.join(sorted(unknown)) or 'labs/ is empty'}; there are: "
            f"{', '.join(lab.name for lab in every) or 'none'}"
        )
    return chosen


def _print_broken(lab: Lab, readme: str | None) -> bool:
    broken = contract.broken_rules(lab, readme)
    print(f"{lab.path.name}: {'keeps the contract' if not broken else f'breaks {len(broken)} rules'}")
    for sentence in broken:
        print(f"  - {sentence}")
    return bool(broken)


if __name__ == "__main__":
    app()
