"""Progress is seen on a terminal as bars, and elsewhere as a line now and then."""

import io

import pytest
from rich.console import Console

from axolotl_alphalora.progress import working


class Clock:
    """A clock that moves when it is told to."""

    now = 0.0

    def __call__(self):
        return self.now


def lines(seconds, capsys, stage="Calibrating"):
    """What stderr sees of rows that take these seconds each; stdout must see nothing."""
    clock = Clock()
    with working(Console(file=io.StringIO()), clock) as doing:
        step = doing(stage)([str(index) for index in range(len(seconds))])
        for index, taken in enumerate(seconds):
            clock.now += taken
            step(str(index))
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_progress_is_seen_on_a_terminal_and_gone_after_a_failure():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True)
    with pytest.raises(ValueError), working(console) as doing:
        step = doing("Resampling")(["a", "b"])
        step("a")
        raise ValueError
    assert "Resampling" in file.getvalue()
    assert file.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K"), "the cursor is back"


def test_what_is_done_at_once_leaves_no_line(capsys):
    assert lines([0.01] * 100, capsys) == []


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(capsys):
    assert lines([5.0] * 10, capsys) == [
        "Calibrating: 1 of 10, about 45 s left",
        "Calibrating: 4 of 10, about 30 s left",
        "Calibrating: 7 of 10, about 15 s left",
        "Calibrating: 10 of 10, done in 50 s",
    ]


@pytest.mark.parametrize("rows", [40, 4000])
def test_lines_do_not_come_with_rows_but_with_time(capsys, rows):
    said = lines([80 / rows] * rows, capsys)
    assert 6 <= len(said) <= 7 and said[-1] == f"Calibrating: {rows} of {rows}, done in 1:20 min"


def test_hours_are_told_in_hours(capsys):
    said = lines([1800.0] * 5, capsys)
    assert said[0] == "Calibrating: 1 of 5, about 2:00:00 h left"


def test_stages_are_told_apart(capsys):
    clock = Clock()
    with working(Console(file=io.StringIO()), clock) as doing:
        for stage in ("Calibrating", "Fitting"):
            step = doing(stage)(["a"])
            clock.now += 3
            step("a")
    assert capsys.readouterr().err.splitlines() == [
        "Calibrating: 1 of 1, done in 3 s",
        "Fitting: 1 of 1, done in 3 s",
    ]


def test_nothing_is_shown_where_nothing_is_wanted(capsys):
    clock = Clock()
    with working(None, clock) as doing:
        step = doing("Calibrating")(["a"])
        clock.now += 100
        step("a")
    assert capsys.readouterr() == ("", "")
