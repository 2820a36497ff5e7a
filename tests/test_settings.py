"""Settings take every sensible spelling, keep one, and refuse the rest by the option's name."""

import dataclasses
import json

import pytest

from axolotl_alphalora.settings import AGGREGATES, ESTIMATORS, QualitySettings


@pytest.mark.parametrize(
    ("given", "text", "shape"),
    [
        (None, None, None),
        ("auto", "auto", "auto"),
        (128, "128x128", (128, 128)),
        ("128x64", "128x64", (128, 64)),
        ([128, 64], "128x64", (128, 64)),
        ((3, 3), "3x3", (3, 3)),
        ("0128x64", "128x64", (128, 64)),
    ],
)
def test_a_window_has_one_spelling_however_it_was_given(given, text, shape):
    settings = QualitySettings(window=given)
    assert settings.window == text
    assert settings.window_shape() == shape
    assert QualitySettings(window=settings.window) == settings


@pytest.mark.parametrize(
    "window",
    [
        *(2, 0, -8, True, 12.5, "", "none", "12", "x", "12x", "12x12x12", "12 x 12", "-8x8"),
        *("2x64", [64], [64, 64, 64], [64, 2], [64, True], [64, "64"], [64.0, 64.0], {"a": 1}),
    ],
)
def test_what_is_no_window_is_refused(window):
    with pytest.raises(ValueError, match="^window must be null, .* not "):
        QualitySettings(window=window)


@pytest.mark.parametrize("value", ["best", "", None, 3, ["hill"]])
@pytest.mark.parametrize("option", ["estimator", "aggregate"])
def test_an_unknown_choice_is_refused_with_the_known_ones(option, value):
    with pytest.raises(ValueError) as caught:
        QualitySettings(**{option: value})
    assert str(caught.value).startswith(f"unknown {option} {value!r}: choose one of ")
    known = {"estimator": ESTIMATORS, "aggregate": AGGREGATES}[option]
    assert all(name in str(caught.value) for name in known)


@pytest.mark.parametrize("value", [1, 0, "true", None])
def test_normalize_is_a_truth_value(value):
    with pytest.raises(ValueError, match="normalize must be true or false, not "):
        QualitySettings(normalize=value)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_settings_survive_a_journey_through_json(estimator, aggregate):
    settings = QualitySettings(estimator, [16, 8], aggregate, True)
    options = json.loads(json.dumps(settings.as_options()))
    assert QualitySettings.from_options(options) == settings


def test_options_of_others_are_left_alone_and_missing_ones_have_defaults():
    assert QualitySettings.from_options({"beta": 2.5, "window": 8}) == QualitySettings(window=8)
    assert QualitySettings.from_options({}) == QualitySettings()
    assert QualitySettings.names() == ("estimator", "window", "aggregate", "normalize")


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QualitySettings().window = "8x8"
