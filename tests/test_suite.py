"""What a contributor's loop is left with: `pytest -m "not slow"`."""

from pathlib import Path

import pytest

from helpers.slow import SLOW

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def whole(slow_fixtures):
    if slow_fixtures.keys() != set(TESTS.rglob("test_*.py")):
        pytest.skip("not all tests were collected")


def test_every_folder_has_tests_that_are_not_slow(slow_fixtures):
    folders = {path.parent for path in slow_fixtures}
    quick = {path.parent for path, taken in slow_fixtures.items() if not all(taken)}
    assert folders - quick == set()


def test_every_fixture_that_is_called_slow_is_there(slow_fixtures):
    assert {name for file in slow_fixtures.values() for taken in file for name in taken} == set(
        SLOW
    )
