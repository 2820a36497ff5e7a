"""The generated rows: the same everywhere, disjoint, of every skill."""

import json
from collections import Counter
from hashlib import sha256

from axolotl_alphalora.quickstart.rows import (
    HELD_OUT_FILE,
    SKILLS,
    TRAIN_FILE,
    make_rows,
    write_rows,
)


def test_rows_are_the_same_on_every_run(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        write_rows(folder)
    for name in (TRAIN_FILE, HELD_OUT_FILE):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    # Changes only when the data are meant to change: reported losses hang on it.
    digest = sha256((first / TRAIN_FILE).read_bytes()).hexdigest()
    assert digest.startswith("6a190dbbfcf3fd72")


def test_held_out_prompts_are_never_trained_on():
    train, held_out = make_rows()
    prompts = [{(row["instruction"], row["input"]) for row in rows} for rows in (train, held_out)]
    assert not prompts[0] & prompts[1]
    assert len(prompts[0]) == len(train)
    assert len(prompts[1]) == len(held_out)


def test_every_skill_is_in_both_files_equally_often():
    train, held_out = make_rows()
    assert Counter(row["task"] for row in train) == dict.fromkeys(SKILLS, 40)
    assert Counter(row["task"] for row in held_out) == dict.fromkeys(SKILLS, 6)
    assert len(SKILLS) == 8


def test_answers_are_right():
    for row in [row for rows in make_rows() for row in rows]:
        text, answer = row["input"], row["output"]
        if row["task"] == "sort_words":
            assert answer.split(" < ") == sorted(text.split(", "))
        if row["task"] == "extract_field":
            field, value = answer.split(" -> ")
            assert f"{field}: {value}" in text.split("; ")
            assert f"'{field}'" in row["instruction"]
        if row["task"] == "to_json":
            person = json.loads(answer)
            assert all(str(value) in text for value in person.values())


def test_prompts_come_with_and_without_input():
    assert {bool(row["input"]) for row in make_rows()[1]} == {True, False}


def test_edited_rows_are_kept(tmp_path):
    mine = '{"instruction": "mine", "input": "", "output": "x"}\n'
    (tmp_path / TRAIN_FILE).write_text(mine)
    write_rows(tmp_path)
    assert (tmp_path / TRAIN_FILE).read_text() == mine
    assert (tmp_path / HELD_OUT_FILE).exists()
