"""YAML files as they are written."""

from axolotl_alphalora.planning.keys import KEYS, REFUSED_KEYS, read_yaml


def test_what_is_read_is_not_what_is_refused():
    assert not KEYS.keys() & REFUSED_KEYS


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "config.yml"
    path.write_bytes("base_model: x\n".encode("utf-8-sig"))
    assert read_yaml(path) == {"base_model": "x"}


def test_keys_may_have_the_host_s_other_names(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text("base_model: x\nmodel_revision: v1\nmodel_config: {a: 1}\n")
    known = {"revision_of_model": "v1", "overrides_of_model_config": {"a": 1}}
    assert read_yaml(path) == {"base_model": "x"} | known
