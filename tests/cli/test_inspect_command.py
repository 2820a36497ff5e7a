"""`alphalora inspect`, from an adapter's files alone."""

import json
import math

import pytest

from axolotl_alphalora.cli.inspect import show
from axolotl_alphalora.inspection import InspectedData, Inspection, inspect_weights
from helpers.inspecting import KINDS, usages, write_adapter


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    plan = {"strategy": {"name": "mola", "options": {}}}
    write_adapter(folder, [1, 2, 5, 3], ranks={"model.layers.3.mlp.up_proj": 2}, plan=plan)
    return folder


def words(result):
    return " ".join(result.output.split())


def test_the_table_has_a_line_for_each_block_and_says_what_stands_out(adapter, run):
    result = run("inspect", adapter)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    found = json.loads(run("inspect", adapter, "--json").stdout)
    lines = {line.split()[0]: line.split() for line in result.output.splitlines() if line.strip()}
    for block, rank in zip(found["blocks"], ("4", "4", "4", "2-4"), strict=True):
        cells = lines[block["name"]]
        redundancy = "-" if block["redundancy"] is None else f"{block['redundancy']:.3f}"
        assert cells[1:3] == [str(int(block["experts"])), rank]
        assert cells[3:6] == [
            f"{block['mean_norm']:.3f}",
            f"{block['mean_effective_rank']:.2f}",
            redundancy,
        ]
    assert lines["total"] == ["total", "11"]
    said = words(result)
    assert "Experts of mine" in said and "shared out by mola." in said
    assert "4 blocks with 16 modules, in which there are 44 experts of rank 2 to 4: top-2" in said
    known = [m for m in found["modules"] if m["redundancy"] is not None]
    most = max(known, key=lambda module: module["redundancy"])
    assert f"Most redundant module: {most['name']} ({most['redundancy']:.3f}" in said
    high = max((b for b in found["blocks"] if b["redundancy"]), key=lambda b: b["redundancy"])
    assert f"It is largest in {high['name']} ({high['redundancy']:.3f}" in said
    assert "Warning" not in said and "Hardly" not in said


def test_what_shapes_a_mixture_is_said_as_planned_and_as_it_is(tmp_path, run):
    shape = {"segments": 2, "router_rank": 3, "share_a": True}
    write_adapter(tmp_path / "cut", [1, 3], top_k=0.5, **shape)
    said = words(run("inspect", tmp_path / "cut"))
    assert (
        "32 experts of rank 2 (16 as planned, cut into 2 each): 50% of them for a token, one A for "
        "all experts of a module, routers of rank 3, "
    ) in said
    found = json.loads(run("inspect", tmp_path / "cut", "--json").stdout)
    assert found["adapter"].items() >= (shape | {"top_k": 0.5, "rank": 4}).items()
    write_adapter(tmp_path / "active", [2, 3], segments=2)
    assert "(20 as planned, cut into 2 each): top-4, " in words(run("inspect", tmp_path / "active"))


def test_every_module_can_be_printed(adapter, run):
    result = run("inspect", adapter, "--per-module")
    assert max(map(len, result.output.splitlines())) <= 80
    below = result.output[result.output.index("Modules (") :]
    assert sum(line.startswith("  ") for line in below.splitlines()) == 4 * len(KINDS)
    assert below.count("model.layers.") == 4


def test_json_is_all_there_is_on_stdout(adapter, run, tmp_path):
    drawn = tmp_path / "new" / "report.html"
    result = run("inspect", adapter, "--json", "--plot", drawn)
    found = json.loads(result.stdout)
    assert found["format"] == "axolotl-alphalora-inspection" and len(found["modules"]) == 16
    assert "Drawn in" in result.stderr and drawn.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_pictures_are_drawn(adapter, run, tmp_path, suffix):
    result = run("inspect", adapter, "--plot", tmp_path / f"experts{suffix}")
    assert result.exit_code == 0 and (tmp_path / f"experts{suffix}").stat().st_size > 10_000


def test_untrained_zero_weak_and_copied_experts_are_named(run, tmp_path):
    name = "model.layers.1.mlp.up_proj"
    key = f"base_model.model.{name}.alphalora_"

    def zero(tensors):
        for tensor in tensors.values():
            tensor.mul_(0)

    def change(tensors):
        a, b = tensors[f"{key}A"], tensors[f"{key}B"]
        b[:, :4] = 0
        a[4:8] *= 1e-3
        a[12:16], b[:, 12:16] = a[8:12], b[:, 8:12]

    write_adapter(tmp_path / "zero", [2, 2], change=zero)
    said = words(run("inspect", tmp_path / "zero"))
    assert "Warning: no expert has been trained" in said and "Redundancy" not in said
    write_adapter(tmp_path / "odd", [2, 5], change=change)
    said = words(run("inspect", tmp_path / "odd"))
    assert (
        f"Warning: 1 pair of experts are near copies (|cosine| above 0.95): {name} (2 and" in said
    )
    assert f"Warning: 1 of 28 experts add nothing, as B is zero: {name} (0)." in said
    assert f"less than 10% of their module's mean norm: {name} (1)." in said


def test_an_adapter_of_one_module_and_one_expert(run, tmp_path):
    write_adapter(tmp_path, {"model.layers.0.mlp.up_proj": 1})
    result = run("inspect", tmp_path, "--plot", tmp_path / "one.png", "--per-module")
    assert result.exit_code == 0, result.output
    assert "1 block with 1 module, in which there are 1 expert" in words(result)
    assert "Redundancy" not in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no/such/dir"], "no/such/dir is no directory"),
        (
            ["no/such/dir", "--samples", "7", "--seed", "9"],
            "add it, or leave out --samples, --seed",
        ),
        (["no/such/dir", "--plot", "experts.gif"], "its name must end in one of .png"),
    ],
)
def test_what_cannot_be_done_is_said_without_a_traceback(run, options, message):
    result = run("inspect", *options)
    assert result.exit_code != 0 and message in words(result)
    assert "Traceback" not in result.output


def test_a_plain_lora_is_told_apart(run, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    result = run("inspect", tmp_path)
    assert result.exit_code == 1 and "is a plain LoRA" in words(result)


def test_names_of_tasks_are_printed_as_they_are(adapter, capsys):
    found = inspect_weights(adapter)
    tasks = ("[/INST]", "[qa] x")
    data = InspectedData("rows.jsonl", 200, dict.fromkeys(tasks, 1))
    usage = usages(found.modules, tasks)
    show(Inspection(found.config, found.modules, usage, data), adapter, False, None, False)
    printed = capsys.readouterr().out
    assert "[/INST]" in printed and "[qa] x" in printed


def test_a_router_that_is_not_finite_is_named(tmp_path, run):
    def break_it(tensors):
        tensors["base_model.model.model.layers.0.mlp.up_proj.alphalora_router"][0, 0] = math.nan

    write_adapter(tmp_path / "mine", [3], change=break_it)
    result = run("inspect", tmp_path / "mine")
    assert result.exit_code == 1
    assert "model.layers.0.mlp.up_proj: its weights are not finite" in words(result)


def test_the_shape_of_the_mixtures_is_said(tmp_path, run):
    shape = {"top_k": 0.125, "segments": 2, "router_rank": 3, "share_a": True}
    write_adapter(tmp_path / "adapter", [2, 3], **shape)
    said = " ".join(run("inspect", tmp_path / "adapter").output.split())
    assert "40 experts of rank 2 (20 as planned, cut into 2 each): 12.5% of them" in said
    assert "one A for all experts of a module, routers of rank 3" in said
    document = json.loads(run("inspect", tmp_path / "adapter", "--json").stdout)
    assert {key: document["adapter"][key] for key in shape} == shape
