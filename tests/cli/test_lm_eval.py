"""What `alphalora lm-eval` hands on to Axolotl's command, and to the harness behind it."""

import json

import pytest

from axolotl_alphalora.cli.lm_eval import model_settings, with_base_model, with_defaults

ARGUMENTS = ["--model", "hf", "--model_args", "pretrained={},dtype=float16", "--tasks", "words"]


def test_the_adapter_in_output_dir_is_evaluated_whatever_the_hub_has():
    given = with_defaults({"output_dir": "./out", "hub_model_id": "me/adapter"})
    assert given["lm_eval_model"] == given["output_dir"] == "./out"
    assert given["lm_eval_batch_size"] == 8
    assert with_defaults({})["output_dir"] == "./model-out"
    own = {"lm_eval_model": "other", "lm_eval_batch_size": 2, "output_dir": "out"}
    assert with_defaults(own) == own


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({"bf16": True}, "bfloat16"),
        ({"bf16": "auto"}, "bfloat16"),
        ({"fp16": True, "bf16": False}, "float16"),
        ({"bf16": False}, "float32"),
        ({}, "auto"),
    ],
)
def test_the_base_is_loaded_as_the_yaml_says(tmp_path, keys, dtype):
    saved = {"base_model_name_or_path": "some/base", "revision": "abc"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
    arguments = [part.format(tmp_path) for part in ARGUMENTS]
    keys = keys | {"trust_remote_code": True}
    changed = with_base_model(arguments, model_settings(keys))
    assert changed[:3] == arguments[:3] and changed[4:] == arguments[4:]
    assert dict(part.split("=", 1) for part in changed[3].split(",")) == {
        "pretrained": "some/base",
        "peft": str(tmp_path),
        "tokenizer": str(tmp_path),
        "dtype": dtype,
        "trust_remote_code": "True",
        "revision": "abc",
    }
    own = with_base_model(arguments, model_settings(keys | {"revision_of_model": "v2"}))
    assert "revision=v2" in own[3]


def test_a_whole_model_is_left_as_it_is(tmp_path):
    arguments = [part.format(tmp_path) for part in ARGUMENTS]
    base = model_settings({"bf16": True, "revision_of_model": "v2"})
    changed = with_base_model(arguments, base)[3]
    assert changed == f"pretrained={tmp_path},dtype=bfloat16"
