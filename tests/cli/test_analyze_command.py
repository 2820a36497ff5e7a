"""`alphalora analyze`: layer quality without a YAML."""

import json

import pytest

from axolotl_alphalora.settings import AGGREGATES, ESTIMATORS


def test_the_table_is_the_plans_scores(model, run):
    plan = json.loads(run("plan", model, "--json").stdout)
    result = run("analyze", model)
    assert result.exit_code == 0, result.output
    for unit in plan["units"]:
        assert f"{unit['name']}  {unit['score']:.3f}" in result.output
    assert "Least trained: " in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_json_holds_what_was_asked_for(model, run):
    options = ["--estimator", "hill", "--window", "16x32", "--aggregate", "median", "--normalize"]
    result = run("analyze", model, *options, "--confidence", "--samples", "10", "--json")
    found = json.loads(result.stdout)
    assert found["settings"] == {
        "estimator": "hill",
        "window": "16x32",
        "aggregate": "median",
        "normalize": True,
    }
    assert found["weights"]["source"] == "safetensors" and found["weights"]["digest"]
    assert [block["name"] for block in found["blocks"]] == [f"model.layers.{i}" for i in range(4)]
    assert all(len(block["interval"]) == 2 for block in found["blocks"])
    assert len(found["modules"]) == 4 * 7
    assert found["modules"][0]["standard_error"] > 0


def test_a_window_is_a_side_a_shape_or_auto(model, run):
    def window(text):
        return json.loads(run("analyze", model, "--window", text, "--json").stdout)["settings"]

    assert window("16")["window"] == "16x16"
    assert window("auto")["window"] == "32x32"


def test_estimators_side_by_side(model, run):
    result = run("analyze", model, "--compare", "hill,window=auto", "--json")
    columns = json.loads(result.stdout)["columns"]
    assert [row["label"] for row in columns] == ["as given", "hill", "window=auto"]
    assert columns[1]["analysis"]["settings"]["estimator"] == "hill"
    assert columns[0]["rank_correlation"] == pytest.approx(1)
    table = run("analyze", model, "--compare", "hill")
    assert "rank correlation" in table.output and "experts" not in table.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--estimator", "hil"], "'hil' is not one of"),
        (["--aggregate", "mode"], "'mode' is not one of"),
        (["--window", "huge"], "window must be"),
        (["--compare", "beta=1"], "beta is no option of measuring"),
        (["--estimator", "weightwatcher", "--confidence"], "use the estimator ks"),
    ],
)
def test_bad_options_are_refused_before_the_model_is_read(run, options, message):
    result = run("analyze", "no/such-model", *options)
    assert result.exit_code != 0 and message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_yaml_is_no_model(tmp_path, run):
    result = run("analyze", tmp_path / "run.yml")
    assert result.exit_code == 2
    assert f"or use `alphalora plan {tmp_path}/run.yml`" in " ".join(result.output.split())


def test_a_directory_without_a_model_is_named(tmp_path, run):
    result = run("analyze", tmp_path)
    assert result.exit_code == 1 and str(tmp_path) in result.output
    assert "Traceback" not in result.output


def test_the_help_names_every_estimator_and_aggregate(run):
    shown = " ".join(run("analyze", "--help").output.split())
    assert all(name in shown for name in (*ESTIMATORS, *AGGREGATES))
