"""`from axolotl_alphalora import analyze`: a table of a model's matrices in two lines."""

import json
import sys
from types import SimpleNamespace

import pandas
import pytest
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from axolotl_alphalora import analyze
from axolotl_alphalora.spectral import fit_power_law, spectrum, unit_scores
from helpers.models import tiny_llama

COLUMNS = (
    "module block kind rows columns alpha x_min distance tail_size standard_error "
    "num_eigenvalues numerical_rank note block_score"
).split()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ALPHALORA_CACHE", str(tmp_path_factory.getbasetemp() / "analysis"))


@pytest.fixture(scope="module")
def live():
    return tiny_llama()


@pytest.fixture(scope="module")
def directory(live, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    live.save_pretrained(folder)
    return folder


def test_one_row_for_each_matrix_with_its_block_and_fit(live, directory):
    table = analyze(str(directory))
    assert list(table.columns) == COLUMNS
    assert len(table) == 2 * 7
    row = table.set_index("module").loc["model.layers.1.mlp.down_proj"]
    weight = live.model.layers[1].mlp.down_proj.weight
    fit = fit_power_law(spectrum(weight))
    assert (row["block"], row["kind"]) == ("model.layers.1", "mlp.down_proj")
    assert (row["rows"], row["columns"]) == tuple(weight.shape)
    assert row["alpha"] == pytest.approx(fit.alpha)
    assert row["standard_error"] == pytest.approx((fit.alpha - 1) / fit.tail_size**0.5)
    means = table.groupby("block")["alpha"].mean()
    assert dict(zip(table["block"], table["block_score"], strict=True)) == pytest.approx(
        means.to_dict()
    )


def test_a_live_model_gives_what_its_files_give(live, directory):
    columns = ["module", "alpha", "distance", "block_score"]
    pandas.testing.assert_frame_equal(analyze(live)[columns], analyze(directory)[columns])


def test_an_adapted_model_is_measured_without_its_adapter(directory):
    base = LlamaForCausalLM.from_pretrained(directory)
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj", "up_proj"]))
    table, plain = analyze(adapted), analyze(directory)
    assert [name.removeprefix("base_model.model.") for name in table["module"]] == list(
        plain["module"]
    )
    assert table["alpha"].tolist() == pytest.approx(plain["alpha"].tolist())


def test_options_reach_the_measurement_and_are_recorded(directory):
    table = analyze(directory, estimator="hill", window=16, aggregate="median", normalize=True)
    assert table.attrs["settings"] == {
        "estimator": "hill",
        "window": "16x16",
        "aggregate": "median",
        "normalize": True,
    }
    assert set(table.attrs["description"]) == {
        "source",
        "dtype",
        "revision",
        "quantization",
        "digest",
    }
    assert 0 <= table.attrs["trust"] <= 1
    matrices = [
        SimpleNamespace(
            module=row.module,
            shape=(row.rows, row.columns),
            alpha=row.alpha,
            numerical_rank=row.numerical_rank,
        )
        for row in table.itertuples()
    ]
    scores = unit_scores(matrices, "median", True)
    assert table.set_index("module")["block_score"].iloc[0] == pytest.approx(
        scores["model.layers.0"]
    )


def test_without_pandas_the_rows_are_dicts(directory, monkeypatch):
    expected = analyze(directory)
    monkeypatch.setitem(sys.modules, "pandas", None)
    rows = analyze(directory)
    assert [list(row) for row in rows] == [COLUMNS] * 14
    assert [row["alpha"] for row in rows] == expected["alpha"].tolist()
    json.dumps(rows)


def test_a_model_without_blocks_is_refused_by_name():
    with pytest.raises(ValueError, match="Sequential has no linear layers inside numbered blocks"):
        analyze(nn.Sequential())


def test_a_wrong_option_is_refused_before_the_model_is_opened():
    with pytest.raises(ValueError, match="unknown estimator 'hil'"):
        analyze("no/such-model", estimator="hil")


def test_two_lines_import_no_training_stack(fresh_process, directory):
    analyze(directory)
    code = (
        "import sys; from axolotl_alphalora import analyze\n"
        "assert 'torch' not in sys.modules\n"
        "analyze(sys.argv[1])\n"
        "heavy = {'axolotl', 'peft', 'transformers', 'trl', 'datasets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    fresh_process("-c", code, directory)


def test_stacked_experts_are_reported_as_not_measured(tmp_path):
    from helpers.checkpoints import tiny_model

    tiny_model("mixtral").save_pretrained(tmp_path / "model")
    for model in (tmp_path / "model", tiny_model("mixtral")):
        unmeasured = analyze(model).attrs["description"]["unmeasured"]
        assert "model.layers.0.mlp.experts.down_proj" in unmeasured
