"""What is typed for one way of measuring or sharing out."""

import pytest

from axolotl_alphalora.cli.options import Display
from axolotl_alphalora.planning.source import changed_allocation, quality_options, read_spec


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("hill", {"estimator": "hill"}),
        ("uniform", {"strategy": "uniform"}),
        ("opposite", {"order": "opposite"}),
        ("mola:2468+shuffled", {"strategy": "mola", "shape": 2468, "order": "shuffled"}),
        ("mola:2468", {"strategy": "mola", "shape": 2468}),
        ("mola:0246", {"strategy": "mola", "shape": "0246"}),
        ("mola+shape=0246", {"strategy": "mola", "shape": "0246"}),
        ("mola:10-2-2-2", {"strategy": "mola", "shape": "10-2-2-2"}),
        ("depth:[2, 8]", {"strategy": "depth", "ramp": [2, 8]}),
        (
            "counts+experts={'a+': 1, '.*': 2}",
            {"strategy": "counts", "experts": {"a+": 1, ".*": 2}},
        ),
        (
            r"counts+experts={'.*layers.\d+.(mlp|self_attn).[qkv]_proj': 2, '[^{]+': 6}",
            {
                "strategy": "counts",
                "experts": {r".*layers.\d+.(mlp|self_attn).[qkv]_proj": 2, "[^{]+": 6},
            },
        ),
        ("counts:'runs/a+b.json'", {"strategy": "counts", "experts": "runs/a+b.json"}),
        ("sensitivity+percentile=40", {"strategy": "sensitivity", "percentile": 40}),
        ("counts:runs/a=b.json", {"strategy": "counts", "experts": "runs/a=b.json"}),
        (
            "alphalora+estimator=ks+beta=1.5+normalize=true+window=64x32",
            {
                "strategy": "alphalora",
                "estimator": "ks",
                "beta": 1.5,
                "normalize": True,
                "window": "64x32",
            },
        ),
    ],
)
def test_a_spec_is_names_and_options_with_values_as_in_yaml(spec, found):
    assert read_spec(spec) == found


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mole", "'mole' is no strategy .*mola.* no estimator .*hill"),
        ("mole:3", "unknown strategy 'mole'"),
        ("uniform:3", "'uniform' has no short form"),
        ("beta=[", r"'\[' is no value"),
        ("alphalora:ks+hill", "estimator is named twice"),
        ("mola+uniform", "strategy is named twice"),
        ("opposite+shuffled", "order is named twice"),
    ],
)
def test_what_cannot_be_read_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        read_spec(spec)


def test_options_are_kept_within_a_strategy_only():
    given = {"beta": 1.0, "granularity": "group"}
    kept = changed_allocation("alphalora", given, "alphalora+estimator=hill")
    assert kept == {"strategy": "alphalora", **given, "estimator": "hill"}
    assert changed_allocation("alphalora", given, "sensitivity") == {"strategy": "sensitivity"}
    shuffled = {"order": "shuffled", "order_seed": 2}
    assert changed_allocation("alphalora", shuffled, "opposite") == {
        "strategy": "alphalora",
        "order": "opposite",
    }
    with pytest.raises(ValueError, match="^opposite: strategy 'uniform' goes by no scores"):
        changed_allocation("uniform", {}, "opposite")
    with pytest.raises(ValueError, match="^hill: strategy 'uniform' has no option 'estimator'"):
        changed_allocation("uniform", {}, "hill")


def test_a_way_of_measuring_takes_no_option_of_sharing_out():
    with pytest.raises(ValueError, match="order is no option of measuring"):
        quality_options("order=opposite")
    for spec in ("uniform", "mola:2468", "opposite", "hill:3", "hil"):
        with pytest.raises(ValueError) as error:
            quality_options(spec)
        said = str(error.value)
        assert f"{spec!r} is no estimator" in said and "mola," not in said, spec


NESTED = r"counts+experts={'.*layers.\d+.(mlp|self_attn).[qkv]_proj': 2, '.*': 6}"


@pytest.mark.parametrize(
    ("given", "specs"),
    [
        (["hill, ks", "counts:[1, 2],uniform", "hill"], ["hill", "ks", "counts:[1, 2]", "uniform"]),
        ([f"{NESTED}, mola:2468"], [NESTED, "mola:2468"]),
        (['counts:{"a],": 1, b[0]: 2},hill'], ['counts:{"a],": 1, b[0]: 2}', "hill"]),
        (["counts:'it''s, here',hill"], ["counts:'it''s, here'", "hill"]),
        (["counts:it's.json,counts:they're.json"], ["counts:it's.json", "counts:they're.json"]),
        (["a],b"], ["a]", "b"]),
    ],
)
def test_commas_separate_specs_unless_in_brackets_or_quotes(given, specs):
    nothing = dict(per_module=False, confidence=False, samples=None, plot=None, spectra=False)
    assert Display.read(given, **nothing).compare == specs
