"""Documents that are no plan, or contradict themselves, are refused by key path."""

import json

import pytest

from axolotl_alphalora.allocation import (
    Plan,
    PlanError,
)


def test_equal_counts_do_not_differ(plan):
    assert plan.differences(plan.counts) is None
    assert plan.differences({"layers.0.q": 1, "layers.1.q": 3}) is None


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        (
            {"layers.0.q": 1, "layers.1.q": 2},
            "module 'layers.1.q' has 3 experts in the plan, but 2 here",
        ),
        ({"layers.0.q": 1}, "module 'layers.1.q' has 3 experts in the plan, but 0 here"),
        (
            {"layers.0.q": 1, "layers.1.q": 3, "lm_head": 2},
            "module 'lm_head' has 0 experts in the plan, but 2 here",
        ),
    ],
)
def test_the_first_difference_is_a_sentence(plan, counts, sentence):
    assert plan.differences(counts) == sentence


def _set(document, path, value):
    *parents, last = path
    for key in parents:
        document = document[key]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "other", "format is 'other'"),
        (["version"], 3, "version is 3, but this axolotl-alphalora reads plans of version 2: upg"),
        (["version"], "1", "version is '1', but this axolotl-alphalora reads plans of version"),
        (["version"], 1, "version is 1, but .* version 2: the plan has been edited"),
        (["base_model"], None, "base_model must be a string"),
        (["rank"], 0, "rank must be an integer of at least 1"),
        (["top_k"], True, "top_k must be a finite number, not True"),
        (["top_k"], 0, "top_k must be at least 1, not 0"),
        (["top_k"], 1.0, r"top_k must be a whole number .* or a share .* in \(0, 1\), not 1\.0"),
        (["segments"], 0, "segments must be an integer of at least 1"),
        (["segments"], 3, "rank is 8, which segments: 3 cannot cut into equal parts"),
        (["segments"], 2, "trainable_parameters is 3168, but the counts in the plan give"),
        (["router_rank"], 1.5, "router_rank must be an integer"),
        (["share_a"], 1, "share_a must be true or false, not 1"),
        (["surprise"], 1, "surprise is not a key of a plan"),
        (["weights"], [], "weights must be an object"),
        (["weights"], {}, r"weights\.source is missing"),
        (["strategy", "name"], "", r"strategy\.name must be a string"),
        (["strategy", "package"], None, r"strategy\.package must be a string"),
        (["strategy", "options"], [], r"strategy\.options must be an object"),
        (["strategy", "beta"], 2.5, r"strategy\.beta is not a key"),
        (["sample"], [], "sample must be an object"),
        (["sample", "tasks"], [], r"sample\.tasks must be an object"),
        (["sample", "tasks", "sums"], 0, r"sample\.tasks\.sums must be an integer of at least 1"),
        (["sample", "seed"], -1, r"sample\.seed must be an integer of at least 0"),
        (["sample", "digest"], "", r"sample\.digest must be a string"),
        (["budget", "kind"], "gold", r"budget\.kind must be one of total_experts, total_param"),
        (["budget", "asked"], None, r"budget\.asked must be a finite number"),
        (["budget", "max_experts"], 2.5, r"budget\.max_experts must be an integer"),
        (["budget", "optimizer"], 3, r"budget\.optimizer must be a string"),
        (["budget", "typo"], 2, r"budget\.typo is not a key"),
        (["spend"], "time", "spend must be one of experts, rank, not 'time'"),
        (["units"], {}, "units must be an array"),
        (["units", 1, "experts"], -1, r"units\[1\]\.experts must be at least 0, not -1"),
        (["units", 1, "experts"], "1", r"units\[1\]\.experts must be a finite number"),
        (["units", 1, "score"], "2", r"units\[1\]\.score must be a finite number"),
        (["units", 1, "interval"], [1.0], r"units\[1\]\.interval\[1\] is missing"),
        (["units", 1, "name"], "layers.0", r"units\[1\]\.name 'layers.0' is listed twice"),
        (["modules", 0], 3, r"modules\[0\] must be an object"),
        (["modules", 2, "experts"], -2, r"modules\[2\]\.experts must be .* not -2"),
        (["modules", 2, "experts"], 1.0, r"modules\[2\]\.experts must be an integer"),
        (["modules", 1, "name"], "layers.0.q", r"modules\[1\]\.name 'layers.0.q' is listed twice"),
        (["modules", 0, "shape"], [64], r"modules\[0\]\.shape\[1\] is missing"),
        (["modules", 0, "shape"], [64, 8, 8], r"modules\[0\]\.shape has too many items"),
        (["modules", 0, "shape"], [64, 0], r"modules\[0\]\.shape\[1\] must be an integer of"),
        (["modules", 0, "alpha"], float("inf"), r"modules\[0\]\.alpha must be a finite number"),
        (["modules", 0, "alpha"], [1], r"modules\[0\]\.alpha must be a finite number, not \[1\]"),
        (["modules", 2, "experts"], 10**400, "a number in it is too large"),
        (["budget", "asked"], 10**400, r"budget\.asked must be a finite number, not 1000"),
        (["modules", 0, "rank"], 0, r"modules\[0\]\.rank must be an integer of at least 1"),
        (["modules", 0, "sensitivity"], 1, r"modules\[0\]\.sensitivity must be an object"),
        (
            ["modules", 0, "sensitivity", "sums"],
            "1",
            r"modules\[0\]\.sensitivity\.sums must be a finite number",
        ),
        (["total_experts"], 5, "total_experts is 5, but the counts in the plan give 2.5"),
        (["module_experts"], 5, "module_experts is 5, but the counts in the plan give 4"),
        (["trainable_parameters"], 1, "trainable_parameters is 1, but"),
    ],
)
def test_a_bad_document_is_refused_by_key_path(plan, tmp_path, path, value, message):
    document = json.loads(json.dumps(plan.to_dict()))
    _set(document, path, value)
    with pytest.raises(PlanError, match=message):
        Plan.from_dict(document)
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(document))
    with pytest.raises(PlanError, match=r"bad\.json: .*" + message):
        Plan.load(file)


@pytest.mark.parametrize(
    "path", [["rank"], ["budget", "min_experts"], ["units", 0, "score"], ["modules", 1, "alpha"]]
)
def test_a_missing_key_is_named(plan, path):
    document = json.loads(json.dumps(plan.to_dict()))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    with pytest.raises(PlanError, match=rf"{path[-1]} is missing"):
        Plan.from_dict(document)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["units", 1, "experts"], 3, r"units\[1\]\.experts is 3, but its modules have 1\.5"),
        (["units", 1, "name"], "layers.7", "units are neither the modules' blocks, nor parts"),
        (["modules", 1, "rank"], 16, r"modules\[1\] has 3 experts of rank 16, which is not how"),
    ],
)
def test_parts_of_a_plan_that_do_not_agree_are_refused(plan, path, value, message):
    document = json.loads(json.dumps(plan.to_dict()))
    _set(document, path, value)
    with pytest.raises(PlanError, match=message):
        Plan.from_dict(document)


@pytest.mark.parametrize(("key", "value"), [("rank", 6), ("experts", 2)])
def test_ranks_that_are_no_multiple_or_of_several_experts_are_refused(ranks, key, value):
    document = json.loads(json.dumps(ranks.to_dict()))
    document["modules"][0][key] = value
    with pytest.raises(PlanError, match=r"modules\[0\] has . experts of rank ., which is not how"):
        Plan.from_dict(document)


def test_how_alphas_were_measured_must_be_known(plan, tmp_path):
    document = json.loads(json.dumps(plan.to_dict()))
    measured = {"alpha": 2.0, "x_min": 1.0, "distance": 0.1, "tail_size": 9}
    document["modules"][0] |= measured | {"num_eigenvalues": 9, "numerical_rank": 9}
    assert Plan.from_dict(document)
    file = tmp_path / "bad.json"
    for option in ("estimator", "aggregate", "granularity"):
        options = document["strategy"]["options"] | {option: "x"}
        changed = document | {"strategy": document["strategy"] | {"options": options}}
        file.write_text(json.dumps(changed))
        with pytest.raises(PlanError, match=rf"bad\.json: strategy\.options: unknown {option} 'x'"):
            Plan.load(file)


def test_a_document_that_is_nested_too_deeply_is_refused(tmp_path):
    file = tmp_path / "bad.json"
    for text in ("[" * 200_000, "[" * 2_000 + "]" * 2_000):
        file.write_text(text)
        with pytest.raises(PlanError, match=r"bad\.json.*: it is nested too deeply"):
            Plan.load(file)
