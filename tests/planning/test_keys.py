"""YAML files as they are written."""

from axolotl_alphalora.planning.keys import KEYS, REFUSED_KEYS, read_yaml


def test_what_is_read_is_not_what_is_refused():
    assert not KEYS.keys() & REFUSED_KEYS


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "config.yml"
    path.write_bytes("base_model: x\n".encode("utf-8-sig"))
    assert read_yaml(path) == {"base_model": "x"}
