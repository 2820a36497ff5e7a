"""`--compare`: several ways side by side."""

import json

import pytest
import yaml
from rich.console import Console

from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.cli.compare import Column, print_comparison, read_spec


def column(label, scores, experts=None):
    names = [f"model.layers.{i}" for i in range(len(scores))]
    counts = None if experts is None else dict(zip(names, experts, strict=True))
    return Column(label, dict(zip(names, scores, strict=True)), counts, 0.5, {})


def test_differences_are_counted_against_the_first_column():
    first = column("as given", [2.0, 3.0, 4.0], [2, 3, 5])
    other = column("hill", [4.0, 3.0, 2.0], [5, 3, 2])
    assert other.correlation(first) == pytest.approx(-1)
    assert (other.changed_blocks(first), other.moved_experts(first)) == (2, 3)


def test_equal_or_missing_scores_have_no_rank_correlation():
    first = column("as given", [2.0, 3.0], [1, 1])
    assert column("even", [2.0, 2.0], [1, 1]).correlation(first) is None
    assert column("none", [None, None], [1, 1]).correlation(first) is None


def test_a_spec_is_names_and_options_with_values_as_in_yaml():
    assert read_spec("hill") == {"estimator": "hill"}
    assert read_spec("alphalora+estimator=ks+beta=1.5+normalize=true+window=64x32") == {
        "strategy": "alphalora",
        "estimator": "ks",
        "beta": 1.5,
        "normalize": True,
        "window": "64x32",
    }


def test_many_columns_are_split_into_tables_of_80_columns():
    scores, counts = [2.0, 3.0], [1, 2]
    labels = ["as given", *(f"estimator=hill+beta={i}" for i in range(9))]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_comparison([column(label, scores, counts) for label in labels], console, "T", "C")
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("as given") > 1
    assert all(text.count(f"beta={i}") == 1 for i in range(9))


def test_each_column_is_the_plan_that_its_options_alone_would_give(tmp_path, model, run):
    def plan(**allocation):
        path = tmp_path / "config.yml"
        settings = {"base_model": str(model), "lora_target_linear": True, "lora_r": 4}
        block = {"alphalora": {"total_experts": 13, "allocation": allocation}}
        path.write_text(yaml.safe_dump(settings | block))
        return path

    base = {"strategy": "alphalora", "beta": 3.0, "aggregate": "median"}
    result = run(
        "plan",
        plan(**base),
        "--compare",
        "hill,estimator=ks+beta=1",
        "--compare",
        "beta=0",
        "--json",
    )
    columns = json.loads(result.stdout)["columns"]
    assert [row["label"] for row in columns] == [
        "as given",
        "hill",
        "estimator=ks+beta=1",
        "beta=0",
    ]
    changes = [{}, {"estimator": "hill"}, {"estimator": "ks", "beta": 1.0}, {"beta": 0.0}]
    for row, change in zip(columns, changes, strict=True):
        alone = run("plan", plan(**(base | change)), "--json")
        assert Plan.from_dict(row["plan"]) == Plan.from_dict(json.loads(alone.stdout))
    assert columns[0]["rank_correlation"] == pytest.approx(1)
    assert columns[0]["blocks_that_differ"] == columns[0]["experts_that_move"] == 0


def test_a_saved_plan_is_the_first_column(tmp_path, model, run):
    saved = tmp_path / "plan.json"
    run("plan", model, "--output", saved)
    path = tmp_path / "config.yml"
    settings = {"base_model": str(model), "lora_target_linear": True}
    path.write_text(yaml.safe_dump(settings | {"alphalora": {"plan": str(saved)}}))
    columns = json.loads(run("plan", path, "--compare", "beta=0", "--json").stdout)["columns"]
    assert Plan.from_dict(columns[0]["plan"]) == Plan.load(saved)
    assert columns[1]["plan"]["total_experts"] == 20


def test_the_table_fits_80_columns_and_says_what_differs(model, run):
    result = run("plan", model, "--compare", "hill,ks")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    for words in ("as given", "hill", "rank correlation", "experts that move", "not noise"):
        assert words in result.output
