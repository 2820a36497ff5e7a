"""The README's support table, read from the markers on the tests.

`works` and `refused` mark a test that runs here; `untested` marks one that needs what this machine
lacks, and says what. Each takes the area, the feature and, if there is one, a note.
"""

import ast
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
STATUS = {"works": "works", "refused": "refused", "untested": "untested here"}
AREAS = (
    "Quantised bases",
    "Trainers",
    "Data",
    "Memory and speed",
    "Scale-out",
    "Verbs",
    "Seeing and exporting",
    "Base models",
    "PEFT",
    "Robustness",
    "Host versions",
)


@dataclass(frozen=True)
class Row:
    """One marker: what was tried, how it went, and the test that says so."""

    area: str
    feature: str
    status: str
    note: str
    file: str
    test: str


def rows() -> list[Row]:
    """All markers of the test suite, in the order of areas, files and lines.

    Raises:
        ValueError: If a marker's arguments are no literals, or its area is unknown.
    """
    found = [row for file in sorted(TESTS.rglob("test_*.py")) for row in _rows_of(file)]
    return sorted(found, key=lambda row: AREAS.index(row.area))


def table() -> str:
    """The table in Markdown: one line for each feature of an area, with every test of it."""
    features: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows():
        features[row.area, row.feature].append(row)
    lines = ["| area | feature | | test |", "| --- | --- | --- | --- |"]
    last = None
    for (area, feature), group in features.items():
        status = {row.status for row in group}
        if len(status) != 1:
            raise ValueError(f"{area}, {feature}: the tests disagree: {sorted(status)}")
        notes = "; ".join(dict.fromkeys(row.note for row in group if row.note))
        tests = dict.fromkeys(f"[`{row.test}`](tests/{row.file})" for row in group)
        lines.append(
            f"| {'' if area == last else area} | {feature}{f' ({notes})' if notes else ''} "
            f"| {status.pop()} | {', '.join(tests)} |"
        )
        last = area
    return "\n".join(lines)


def _rows_of(file: Path) -> list[Row]:
    found = []
    tree = ast.parse(file.read_text())
    for test in tree.body:
        if not isinstance(test, ast.FunctionDef) or not test.name.startswith("test_"):
            continue
        calls = [c for d in test.decorator_list for c in ast.walk(d) if isinstance(c, ast.Call)]
        for call in sorted(calls, key=lambda call: call.lineno):
            status = _marker(call.func)
            if status is None:
                continue
            try:
                area, feature, *note = [ast.literal_eval(argument) for argument in call.args]
                AREAS.index(area)
            except ValueError as error:
                raise ValueError(f"{file.name}:{call.lineno}: {error}") from error
            path = file.relative_to(TESTS).as_posix()
            found.append(Row(area, feature, STATUS[status], " ".join(note), path, test.name))
    return found


def _marker(function: ast.expr) -> str | None:
    text = ast.unparse(function)
    return next((name for name in STATUS if text == f"pytest.mark.{name}"), None)


if __name__ == "__main__":
    print(table())
