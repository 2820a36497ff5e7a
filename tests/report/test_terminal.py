"""How tables and sentences look in a terminal."""

import io
import re

import pytest
from rich.console import Console

from axolotl_alphalora.allocation import ModulePlan, Plan, UnitPlan
from axolotl_alphalora.report.findings import Findings
from axolotl_alphalora.report.plan_tables import analysis_table, matrices_table, modules_table
from axolotl_alphalora.report.tables import Bar, Column, Name, Note, Table, names
from axolotl_alphalora.report.terminal import print_lines, print_plan, print_table
from axolotl_alphalora.settings import MatrixQuality

LONG = "model.language_model.layers"


def measured(name, experts, alpha):
    shape = (14336, 4096)
    fit = (alpha, 0.1, 0.1, 50, 4096, 4000, "rank 4000 of 4096")
    return ModulePlan(
        name=name, shape=shape, experts=experts, rank=8, quality=MatrixQuality(name, shape, *fit)
    )


def plan(names, intervals=True):
    rows = [(name, 2.0 + i / 7) for i, name in enumerate(names)]
    return Plan(
        base_model="an-organisation/a-model-with-a-name-that-is-quite-a-bit-longer-than-most-are",
        weights={"source": "safetensors", "dtype": "bfloat16"},
        strategy={"name": "alphalora", "package": "p 1", "options": {"estimator": "xmin_peak"}},
        budget={
            "kind": "total_experts",
            "asked": len(rows),
            "spent": len(rows),
            "unspent": 0,
            "min_experts": 1,
            "max_experts": None,
            "optimizer": None,
        },
        top_k=2,
        rank=8,
        units=tuple(
            UnitPlan(
                name=name,
                score=score,
                experts=1 + i,
                interval=(score - 1, score + 10) if intervals else None,
            )
            for i, (name, score) in enumerate(rows)
        ),
        modules=tuple(
            measured(f"{name}.self_attn.q_proj", 1 + i, score)
            for i, (name, score) in enumerate(rows)
        ),
    )


def printed(show, *arguments, **options):
    file = io.StringIO()
    show(*arguments, console=Console(file=file, width=80, **options))
    return file.getvalue()


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("prefix", ["h", LONG, f"base.{LONG.replace('language', 'conditional')}"])
def test_tables_fit_80_columns_and_tell_blocks_apart(prefix, colour):
    options = {"force_terminal": True} if colour else {}
    made = plan([f"{prefix}.{i}" for i in (0, 31, 100)])
    found = Findings.of_plan(made)
    for text in (
        printed(print_plan, made, **options),
        printed(print_table, analysis_table(found, "m"), **options),
        printed(print_table, matrices_table(found.matrices), **options),
        printed(print_table, modules_table(made, found), **options),
    ):
        plain = Console(width=200).render_str(text) if not colour else None
        lines = (str(plain) if plain else _without_colour(text)).splitlines()
        too_long = [line for line in lines if len(line) > 80 and " " in line]
        assert not too_long
        for number in (0, 31, 100):
            assert sum(f".{number} " in f"{line} " for line in lines) >= 1


def _without_colour(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_the_table_keeps_names_numbers_and_totals_whole():
    made = plan([f"{LONG}.{i}" for i in (0, 31)])
    text = printed(print_plan, made)
    assert f"{LONG[LONG.index('layers') :]}.31" in text
    assert f"{made.trainable_parameters:,}" in text
    assert "1.14 - 12.14" in text


def test_many_columns_are_split_into_tables_of_80_columns():
    labels = ["as given", *(f"estimator=hill+\nbeta={i}" for i in range(9))]
    cells = ["2.000   3"] * 2
    columns = [Column(f"{label}\nalpha   n", cells, ["1,234,567"]) for label in labels]
    blocks = names("block", [f"model.layers.{i}" for i in range(2)])
    table = Table([blocks, *columns], "T", "C", footer=["total"], leads=2)
    text = printed(print_table, table)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("as given") > 1
    assert text.count("1,234,567") == 9 + text.count("as given")
    assert all(text.count(f"beta={i}") == 1 for i in range(9))
    assert text.count("model.layers.1 ") == text.count("T\n") == text.count("C\n")


def test_names_give_way_and_are_shortened_where_they_do_not_differ():
    ended, begun = "a" * 80 + ".mlp.up_proj", "maths, " + "b" * 80
    for name, kept in ((Name(ended), ".mlp.up_proj "), (Name(begun, ending=False), "maths, bb")):
        table = Table([Column("name", [name], left=True), Column("n", ["12,345"])])
        line = printed(print_table, table).splitlines()[-1]
        assert len(line) == 80 and kept in line and "..." in line and line.endswith(" 12,345")


def test_a_bar_is_as_long_as_its_share_and_never_nothing_for_something():
    table = Table([Column("", [Bar(share) for share in (1, 0.5, 1e-9, 0)], left=True)])
    marks = [line.strip() for line in printed(print_table, table).splitlines()[-4:]]
    assert marks == ["#" * 20, "#" * 10, "#", ""]


def test_notes_stand_below_each_once_and_markup_is_not_read():
    cells = [Note("[bold] few"), Note(""), Note("none"), Note("[bold] few")]
    rows = [f"m.layers.{i}.q_proj" for i in range(4)]
    table = Table([names("module", rows), Column("note", cells)], by_block=True)
    lines = [line.split() for line in printed(print_table, table).splitlines()]
    assert [line[1:] for line in lines if line[:1] == ["q_proj"]] == [["1"], [], ["2"], ["1"]]
    assert lines[-2:] == [["1", "[bold]", "few"], ["2", "none"]]


def test_warnings_stand_out_and_paths_are_not_broken():
    path = "/a/" + "very-long/" * 12
    text = printed(print_lines, [f"Warning: see {path}", "Nothing"], force_terminal=True)
    assert path in text and "\x1b[33mWarning" in text and "\x1b[33mNothing" not in text
