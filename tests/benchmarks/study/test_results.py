"""The file of results: whole lines, each cell once, one writer."""

import pytest

from benchmarks.study import results


def test_lines_come_back(tmp_path):
    file = tmp_path / "results.jsonl"
    assert results.read(file) == {}
    for number in range(3):
        results.append({"cell": f"c{number}", "loss": 1 / 3}, file)
    assert list(results.read(file)) == ["c0", "c1", "c2"]
    assert results.read(file)["c1"] == {"cell": "c1", "loss": 1 / 3}


def test_a_line_that_was_cut_short_is_left_out_and_written_over(tmp_path):
    file = tmp_path / "results.jsonl"
    results.append({"cell": "a"}, file)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"cell": "b", "lo')
    assert list(results.read(file)) == ["a"]
    results.append({"cell": "b"}, file)
    assert file.read_bytes() == whole + b'{"cell": "b"}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"cell": "a"}\nno\n', "line 2 is no result"),
        ('{"loss": 1}\n', "line 1 is no result"),
        ('{"cell": "a"}\n{"cell": "a"}\n', "line 2: the cell a is there twice"),
    ],
)
def test_a_damaged_file_is_named_with_the_line(tmp_path, text, said):
    file = tmp_path / "results.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        results.read(file)


def test_there_is_one_writer(tmp_path):
    file = tmp_path / "results.jsonl"
    with results.locked(file):
        with pytest.raises(ValueError, match="another run writes to"), results.locked(file):
            pass
    with results.locked(file):
        pass
