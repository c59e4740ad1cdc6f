"""The compatibility matrix as tables and as the page ``docs/boards.md``, and that page read back."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploylab.boards import wheels
from deploylab.boards.instructions import LANES
from deploylab.boards.matrix import MODEL, OUTCOMES, Cell, Matrix
from deploylab.boards.profiles import PROFILES
from deploylab.errors import InputError

INSTRUCTIONS = "Instructions of one inference"
NONE = "-"
MB = 1_000_000
_DOES = {"fmadd": "fp32", "fmla_fp32": "fp32", "fmla_fp16": "fp16", "dot_int8": "int8"}
_CELL = re.compile(
    rf"(?P<outcome>{'|'.join(OUTCOMES)})(?: as (?P<ran>.+?))?(?:, error (?P<error>\d\S*))?(?: \((?P<note>\d+)\))?"
)


@dataclass(frozen=True)
class Table:
    """A table with its title and what one must know to read it."""

    title: str
    about: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(matrix: Matrix) -> list[Table]:
    """What runs, instructions, memory, and the wheels that crash; those that there is something of."""
    numbers = reasons(matrix)
    found = [
        _by_board(
            matrix,
            "What runs",
            "**runs**: the output is right, its largest error is this part of the largest output. **refused**: the "
            "engine or its adapter says that it cannot, instead of computing in another precision unasked; the number "
            "leads to its words. Where another precision ran than was asked for, the cell names it.",
            lambda cell: cell.text + (f" ({numbers[cell.reason]})" if cell.reason else ""),
        )
    ]
    if any(cell.instructions for cell in matrix.cells):
        found.append(
            _by_board(
                matrix,
                INSTRUCTIONS,
                "Machine instructions in the engine's own code for one picture in one thread, and the kind of number "
                "that most of its multiply-adds are on (other: none of those that are counted, such as integers "
                "without dot products). Not a time. Vector instructions and multiply-adds are the same in every run. "
                "The total is so too until something about the installation changes: engines look things up by "
                "address. Then it differs by a few in 100,000.",
                _instructions,
            )
        )
    if any(cell.memory for cell in matrix.cells):
        found.append(
            _by_board(
                matrix,
                "Memory",
                "Peak of resident memory in MB, less what Python and NumPy take: runtime, model and three inferences, "
                "and what the emulator adds for them. Compare these with each other only.",
                lambda cell: f"{cell.memory / MB:.0f}" if cell.memory else NONE,
            )
        )
    if matrix.wheels:
        found.append(_wheels(matrix))
    return found


def to_markdown(matrix: Matrix) -> str:
    """The page. :func:`from_markdown` reads its first table."""
    boards = _boards(matrix)
    lines = ["# Engines on emulated boards", "", *_wrapped(_HEAD), ""]
    for name in boards:
        profile = PROFILES[name]
        note = f"; {profile.note}" if profile.note else ""
        lines.append(f"- `{name}`: {profile.title}, {profile.core} (QEMU's {profile.cpu}){note}.")
    for number, table in enumerate(tables(matrix)):
        lines += ["", f"## {table.title}", "", *_wrapped(table.about), ""]
        lines += [f"| {' | '.join(table.header)} |", "|---" * len(table.header) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in table.rows]
        if number == 0:
            lines += ["", *(f"{number}. {reason}" for reason, number in reasons(matrix).items())]
    lines += ["", *(f"- {note}" for note in matrix.notes)]
    lines.append(f"- {', '.join(f'{name} {version}' for name, version in matrix.versions.items())}")
    return "\n".join(lines) + "\n"


_HEAD = (
    f"Which engine runs on which board's CPU, in which precision, how right, with how much memory and how many "
    f"instructions: {MODEL}, one picture at a time, one thread. Made by `deploylab boards matrix --write "
    "docs/boards.md`; a test fails if a cell gets worse. There is no time in it: an emulated board has none. How "
    "boards are emulated: [hardware/emulator](../hardware/emulator/README.md)."
)


def from_markdown(text: str) -> dict[tuple[str, str, str], Cell]:
    """The cells of the page's first table, by engine, precision and board. Raises :class:`InputError`."""
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    if not rows or rows[0][:2] != ["engine", "precision"]:
        raise InputError("no compatibility matrix: expected a row that begins with `| engine | precision |`")
    boards, cells = rows[0][2:], {}
    for engine, precision, *parts in rows[2:]:
        if engine == "engine":
            break
        for board, part in zip(boards, parts, strict=True):
            cells[engine, precision, board] = _parsed(engine, precision, board, part)
    return cells


def _parsed(engine: str, precision: str, board: str, text: str) -> Cell:
    found = _CELL.fullmatch(text)
    if found is None:
        raise InputError(f"{engine} in {precision} on {board}: no outcome of the compatibility matrix: {text!r}")
    ran = found["ran"] or (precision if found["outcome"] in ("runs", "wrong") else "")
    error = float(found["error"]) if found["error"] else None
    return Cell(engine, precision, board, found["outcome"], ran, error=error)


def _boards(matrix: Matrix) -> list[str]:
    return list(dict.fromkeys(cell.board for cell in matrix.cells))


def _by_board(matrix: Matrix, title: str, about: str, tell: Callable[[Cell], str]) -> Table:
    boards = _boards(matrix)
    pairs = dict.fromkeys((cell.engine, cell.precision) for cell in matrix.cells)
    rows = [[*pair, *(tell(matrix.cell(*pair, board)) for board in boards)] for pair in pairs]
    return Table(title, about, ["engine", "precision", *boards], rows)


def reasons(matrix: Matrix) -> dict[str, int]:
    """What the cells say that do not run, by number."""
    said = dict.fromkeys(cell.reason for cell in matrix.cells if cell.reason)
    return {reason: number for number, reason in enumerate(said, 1)}


def _instructions(cell: Cell) -> str:
    counts = cell.instructions
    if not counts:
        return NONE
    kind = max(LANES, key=lambda kind: LANES[kind] * counts[kind])
    few = counts[kind] < counts["vector"] / 10
    return f"{counts['all']:,} {'other' if few else _DOES[kind]}"


def _wheels(matrix: Matrix) -> Table:
    by_board = {cell.board: cell for cell in matrix.wheels}
    fault = next((cell.fault for cell in matrix.wheels if cell.fault), None)
    needs = f"`{fault.feature}`; it ends at {fault.word:#010x}" if fault and fault.feature else NONE
    known = wheels.CRASHING
    rows = [
        [str(known), *(cell.outcome for cell in by_board.values()), needs, _linked(known)],
        [
            str(wheels.TOO_LARGE),
            *["not tried"] * len(by_board),
            "`atomics`, say the reports",
            _linked(wheels.TOO_LARGE),
        ],
    ]
    return Table(
        "Wheels that crash",
        "Releases whose aarch64 wheel holds instructions that older boards lack, and reports of real boards. The first "
        "is imported for this page; the second has 146 MB and stands here by reports only. A feature is named as in "
        "`/proc/cpuinfo`: `asimdhp` are half-precision vectors, `atomics` the atomic instructions of Armv8.1.",
        ["wheel", *by_board, "needs", "reported"],
        rows,
    )


def _linked(wheel: wheels.Wheel) -> str:
    return ", ".join(
        f"[{'/'.join(source.split('/')[3:5])}#{source.split('/')[-1]}]({source})" for source in wheel.sources
    )


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)
