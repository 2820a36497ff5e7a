"""What the entries of `datasets:` are called; `test_samples.py` tests which rows they own."""

from axolotl_alphalora.plugin.data import entry_names


def test_names_of_entries_are_short_and_different(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").touch()
    a, b = (str(tmp_path / folder / "train.jsonl") for folder in ("a", "b"))
    assert entry_names([{"path": a}]) == ["train.jsonl"]
    assert entry_names([{"path": "org/data"}, {"path": "org/data", "name": "algebra"}]) == [
        "org/data",
        "org/data:algebra",
    ]
    assert entry_names([{"path": a}, {"path": b}]) == [
        f"train.jsonl (path: {a})",
        f"train.jsonl (path: {b})",
    ]
    same = {"path": "json", "type": "alpaca"}
    assert entry_names(
        [
            same | {"data_files": ["x.json", "y.json"]},
            same | {"data_files": "z.json"},
            same | {"data_files": "z.json", "type": {"format": "{input}"}},
            same | {"data_files": "z.json", "weight": 0.5},
        ]
    ) == [
        "json (data_files: x.json, y.json)",
        "json (data_files: z.json) (type: alpaca) #1",
        "json (data_files: z.json) (type: custom)",
        "json (data_files: z.json) (type: alpaca) #2",
    ]
    assert len({*entry_names([same] * 4)}) == 4
