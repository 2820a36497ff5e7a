"""Strategies are found by name, checked, and blamed by name and package."""

import pytest

from axolotl_alphalora.allocation import StrategyError, registry
from axolotl_alphalora.allocation.strategy import GROUP
from helpers.allocating import experts, plan

BUILT_IN = ["alphalora", "counts", "depth", "eva", "mola", "sensitivity", "uniform"]
SCORE = """
@hookimpl
def score(problem):
    return {unit: place + 1 for place, unit in enumerate(problem.units)}
"""


def test_the_built_in_strategies_are_there_and_sound():
    known = registry()
    assert known.names() == BUILT_IN
    assert known.problems == []
    for name in BUILT_IN:
        found = known.get(name)
        assert (found.strategy.name, found.built_in) == (name, True)
        assert found.package.startswith("axolotl-alphalora ")
        assert found.strategy.summary
        for option, field in found.strategy.options.model_fields.items():
            assert field.description, f"{name}: {option}"


def test_an_installed_strategy_is_used_by_name(site):
    site.install("rising", SCORE, name="rising")
    assert registry().names() == sorted([*BUILT_IN, "rising"])
    found = registry().get("rising")
    assert (found.package, found.built_in) == ("rising 1.0", False)
    made = plan("rising", budget={"total_experts": 20})
    assert experts(made) == [2, 4, 6, 8]
    assert made.strategy == {"name": "rising", "package": "rising 1.0", "options": {}}
    assert [unit.score for unit in made.units] == [1, 2, 3, 4]


def test_a_package_may_have_several_strategies_as_objects(site):
    site.install(
        "several",
        """
from axolotl_alphalora.allocation import Strategy, hookimpl

class All:
    def __init__(self, name, place):
        self.name, self.place = name, place

    @hookimpl
    def register_strategy(self):
        return Strategy(self.name, "all but one get nothing")

    @hookimpl
    def allocate(self, problem):
        return {unit: 20 * (i == self.place) for i, unit in enumerate(problem.units)}

first, last = All("first", 0), All("last", 3)
""",
    )
    entries = site.folder / "several-1.0.dist-info" / "entry_points.txt"
    entries.write_text(f"[{GROUP}]\nfirst = several:first\nlast = several:last\n")
    assert registry().problems == []
    assert experts(plan("first", budget={"min_experts": 0})) == [20, 0, 0, 0]
    assert experts(plan("last", budget={"min_experts": 0})) == [0, 0, 0, 20]


def test_two_packages_with_one_name_are_both_named(site):
    site.install("one", SCORE, name="rising")
    site.install("another-one", SCORE, name="rising")
    with pytest.raises(StrategyError) as error:
        registry().get("rising")
    assert "'rising' is in " in str(error.value)
    assert "one 1.0" in str(error.value) and "another-one 1.0" in str(error.value)
    with pytest.raises(StrategyError, match="uninstall one of these packages"):
        plan("rising")
    assert experts(plan("uniform")) == [5] * 4


def test_a_name_of_ours_that_is_taken_is_an_error_too(site):
    site.install("usurper", SCORE, name="mola")
    with pytest.raises(StrategyError, match=r"'mola' is in axolotl-alphalora \S+ and usurper 1\.0"):
        plan("mola")


BROKEN = {
    "absent": ("import no_such_module", r"absent 1\.0: .*cannot be imported: ModuleNotFoundError"),
    "raising": ("1 / 0", r"raising 1\.0: .*cannot be imported: ZeroDivisionError"),
    "nameless": (
        "from axolotl_alphalora.allocation import hookimpl\n" + SCORE,
        r"nameless 1\.0: nameless is no strategy: register_strategy must return a Strategy, not N",
    ),
    "unmarked": ("def register_strategy(): ...", r"unmarked 1\.0: .*must return a Strategy"),
    "mute": (
        "from axolotl_alphalora.allocation import Strategy, hookimpl\n"
        "@hookimpl\ndef register_strategy(): return Strategy('mute', 'says nothing')",
        r"mute 1\.0: .*neither a score hook nor an allocate hook",
    ),
    "misspelt": (
        "from axolotl_alphalora.allocation import Strategy, hookimpl\n"
        "@hookimpl\ndef register_strategy(): return Strategy('misspelt', '')\n"
        "@hookimpl\ndef scores(problem): return {}\n" + SCORE,
        r"misspelt 1\.0: .*unknown hook 'scores'",
    ),
    "arguments": (
        "from axolotl_alphalora.allocation import Strategy, hookimpl\n"
        "@hookimpl\ndef register_strategy(): return Strategy('arguments', '')\n"
        "@hookimpl\ndef score(model): return {}\n",
        r"arguments 1\.0: .*Argument\(s\) \{'model'\} are declared in the hookimpl but can not",
    ),
    "badly-named": (
        "from axolotl_alphalora.allocation import Strategy, hookimpl\n"
        "@hookimpl\ndef register_strategy(): return Strategy('a:b', '')\n" + SCORE,
        r"badly-named 1\.0: .*its name is 'a:b': letters, digits, _ and - are allowed",
    ),
    "without-defaults": (
        "from axolotl_alphalora.allocation import Options, Strategy, hookimpl\n"
        "class Needy(Options):\n    number: int\n"
        "@hookimpl\ndef register_strategy(): return Strategy('needy', '', Needy)\n" + SCORE,
        r"without-defaults 1\.0: .*number Field required",
    ),
}


@pytest.mark.parametrize("package", BROKEN)
def test_a_broken_package_is_named_and_the_others_keep_working(site, package):
    source, message = BROKEN[package]
    site.install(package, source)
    site.install("rising", SCORE, name="rising")
    assert registry().names() == sorted([*BUILT_IN, "rising"])
    (problem,) = registry().problems
    with pytest.raises(StrategyError, match=message):
        raise StrategyError(problem)
    with pytest.raises(StrategyError, match=rf"unknown strategy '{package}': .*{message}"):
        registry().get(package)
    assert experts(plan("mola", options={"shape": 2468})) == [2, 4, 6, 8]
    assert experts(plan("rising", budget={"total_experts": 20})) == [2, 4, 6, 8]


def test_a_module_that_is_listed_twice_works_once(site):
    site.install("rising", SCORE, "rising", "again", name="rising")
    (problem,) = registry().problems
    assert problem.startswith("rising 1.0: ") and "there already" in problem
    assert experts(plan("rising", budget={"total_experts": 20})) == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("uniform", {"strategy": "uniform"}),
        ("mola:2468", {"strategy": "mola", "shape": 2468}),
        ("mola:10-2-2-2", {"strategy": "mola", "shape": "10-2-2-2"}),
        ("mola:[2, 4]", {"strategy": "mola", "shape": [2, 4]}),
        ("mola:0246", {"strategy": "mola", "shape": "0246"}),
        ("depth:2-8", {"strategy": "depth", "ramp": "2-8"}),
        ("alphalora:hill", {"strategy": "alphalora", "estimator": "hill"}),
        ("counts:{q_proj: 2}", {"strategy": "counts", "experts": {"q_proj": 2}}),
    ],
)
def test_short_forms(text, request_):
    assert registry().read(text) == request_
    name = request_.pop("strategy")
    registry().get(name).options(request_)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uniform:3", "'uniform:3': strategy 'uniform' has no short form; it takes no options"),
        ("sensitivity:3", r"has no short form; write \{strategy: sensitivity, option: value\}"),
        ("mola:[1", r"'mola:\[1': '\[1' is no value"),
        ("nope:3", "unknown strategy 'nope': choose one of alphalora, counts"),
    ],
)
def test_short_forms_that_are_none(text, message):
    with pytest.raises(StrategyError, match=message):
        registry().read(text)


@pytest.mark.parametrize("name", BUILT_IN)
def test_unknown_options_are_named_with_those_that_there_are(name):
    fields = registry().get(name).fields
    known = ", ".join(fields) or "none"
    with pytest.raises(
        StrategyError, match=f"^strategy '{name}' has no option 'gamma': it takes {known}$"
    ):
        registry().get(name).options({"gamma": 1})
    with pytest.raises(StrategyError, match=f"option '1' of strategy '{name}'"):
        registry().get(name).options({1: 2})


NO_NUMBERS = "a number for each block, a mapping of module patterns, or a plan file"


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("alphalora", "beta", "2", "should be a valid number, not '2'"),
        ("alphalora", "beta", True, "should be a valid number, not True"),
        ("alphalora", "beta", -1, "should be greater than or equal to 0, not -1"),
        ("alphalora", "beta", float("nan"), "should be a finite number, not nan"),
        ("alphalora", "estimator", "best", "unknown estimator 'best': choose one of xmin_peak"),
        ("alphalora", "estimator", 1, "unknown estimator 1: choose one of"),
        ("alphalora", "window", 2, "window must be null, .* not 2$"),
        ("alphalora", "aggregate", "max", "unknown aggregate 'max': choose one of mean, median"),
        ("alphalora", "normalize", 1, "normalize must be true or false, not 1"),
        ("alphalora", "granularity", "row", "should be 'block', 'group' or 'module', not 'row'"),
        ("alphalora", "rounding", "up", "should be 'largest_remainder' or 'published', not 'up'"),
        ("mola", "shape", True, "expected a shape such as 2468, .* not True"),
        ("mola", "shape", "ab", "expected a shape such as 2468, .* not 'ab'"),
        ("mola", "shape", None, "expected a shape such as 2468, .* not None"),
        ("mola", "shape", [2.5], r"expected a shape such as 2468, .* not \[2\.5\]"),
        ("mola", "shape", [float("inf"), 2], r"expected a shape such as 2468, .* not \[inf, 2\]"),
        ("mola", "shape", [True, 2], r"expected a shape such as 2468, .* not \[True, 2\]"),
        ("mola", "shape", [-1, 2], "has a negative number"),
        ("mola", "shape", "000", "no expert at all"),
        ("depth", "ramp", 28, "expected two numbers such as 2-8, not 28"),
        ("depth", "ramp", [1, 2, 3], "expected two numbers such as 2-8, not"),
        ("depth", "ramp", [float("nan"), 2], "expected two numbers such as 2-8, not"),
        ("depth", "ramp", [0, 0], "expected two numbers such as 2-8, not"),
        ("depth", "ramp", [-1, 4], "expected two numbers such as 2-8, not"),
        ("eva", "rho", 0.5, "should be greater than or equal to 1, not 0.5"),
        ("eva", "rho", float("inf"), "should be a finite number, not inf"),
        ("sensitivity", "samples", 0, "should be greater than or equal to 1, not 0"),
        ("sensitivity", "samples", 1.5, "should be a valid integer, not 1.5"),
        ("sensitivity", "seed", -1, "should be greater than or equal to 0, not -1"),
        ("sensitivity", "beta", float("inf"), "should be a finite number, not inf"),
        ("sensitivity", "granularity", 1, "should be 'block', 'group' or 'module', not 1"),
        ("sensitivity", "percentile", 100, "should be less than 100, not 100"),
        ("sensitivity", "within", "row", "should be 'all', 'group' or 'kind', not 'row'"),
        ("sensitivity", "within", "kind", "within says what a percentile is taken over"),
        ("counts", "experts", [], r"expected numbers of experts, 0 or more, not \[\]"),
        ("counts", "experts", [1, -1], "expected numbers of experts, 0 or more, not"),
        ("counts", "experts", {"q": -1}, "expected numbers of experts, 0 or more, not"),
        ("counts", "experts", {"(": 1}, r"'\(' is no regular expression: "),
        ("counts", "experts", [1, "a"], rf"should be {NO_NUMBERS}, not \[1, 'a'\]$"),
        ("counts", "experts", [True], rf"should be {NO_NUMBERS}, not \[True\]$"),
        ("counts", "experts", 5, f"should be {NO_NUMBERS}, not 5$"),
        ("counts", "experts", "absent.json", "cannot read the plan absent.json: No such file"),
    ],
)
def test_wrong_values_are_named_with_option_and_strategy(name, option, value, message):
    with pytest.raises(StrategyError, match=message) as error:
        registry().get(name).options({option: value})
    assert f"strategy '{name}'" in str(error.value)
    assert option in str(error.value)


def test_a_percentile_excludes_a_granularity():
    with pytest.raises(StrategyError, match="'sensitivity': a percentile decides for single mod"):
        registry().get("sensitivity").options({"percentile": 40, "granularity": "block"})


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ("Strategy('odd', 'x', needs='gradient')", "needs is 'gradient': it is one of nothing"),
        ("Strategy('odd', 'x', options=dict)", "options must be a subclass of Options"),
        ("Strategy('odd', 'x', shorthand='size')", "shorthand 'size' is none of its options"),
    ],
)
def test_a_wrong_description_is_a_problem_of_its_package(site, described, message):
    site.install(
        "wrong",
        f"""
from axolotl_alphalora.allocation import Strategy, hookimpl

@hookimpl
def register_strategy():
    return {described}

@hookimpl
def score(problem):
    return dict.fromkeys(problem.units, 1)
""",
    )
    assert len(registry().problems) == 1
    assert "wrong 1.0" in registry().problems[0] and message in registry().problems[0]
    assert "odd" not in registry().names()
