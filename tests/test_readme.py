"""The README says what the code does: its commands, its option tables, its YAML."""

import re
from pathlib import Path

import pytest
import yaml

import support
from axolotl_alphalora.allocation import registry
from axolotl_alphalora.planning import AlphaLoraConfigBlock
from axolotl_alphalora.plugin.refusals import HONOURED, REFUSED
from axolotl_alphalora.settings import ESTIMATORS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def option_tables() -> str:
    """The tables between the README's markers; run this file as a script to print them."""
    lines = ["| honoured | meaning |", "| --- | --- |"]
    lines += [f"| `{key}` | {meaning} |" for key, meaning in HONOURED.items()]
    lines += ["", "| refused | why, and what to do |", "| --- | --- |"]
    lines += [f"| `{row.key}` | {row.reason}. {row.remedy}. |" for row in REFUSED]
    return "\n".join(lines)


def strategy_table() -> str:
    """The table of strategies between the README's markers."""
    uses = {"needed": "needed", "optional": "optional", "none": "none, its own numbers"}
    needs = {
        "nothing": "nothing",
        "quality": "the weights",
        "sensitivity": "training data and a loaded model",
    }
    lines = ["| strategy | from | measures | budget | options and defaults |", "| --- " * 5 + "|"]
    for name in ("alphalora", "mola", "sensitivity", "uniform", "depth", "counts"):
        strategy = registry().get(name).strategy
        options = [
            f"`{option}: {_yaml(field.default)}` {field.description}"
            for option, field in strategy.options.model_fields.items()
        ]
        lines.append(
            f"| `{name}`: {strategy.summary} | {strategy.reference or ''} "
            f"| {needs[strategy.needs]} | {uses[strategy.options().budget_use]} "
            f"| {'; '.join(options) or 'none'} |"
        )
    return "\n".join(lines)


def _yaml(value) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def test_the_table_of_strategies_is_that_of_the_code():
    between = re.search(r"<!-- strategies: .*? -->\n(.*?)\n<!-- /strategies -->", README, re.S)
    assert between[1] == strategy_table(), "run `python tests/test_readme.py` and paste its output"


def test_the_example_of_a_strategy_is_the_one_that_is_tested():
    example = ROOT / "tests" / "allocation" / "example"
    for file in example.rglob("*"):
        if file.suffix in (".py", ".toml"):
            assert file.read_text().strip() in README, file.name


def test_the_option_tables_are_those_of_the_code():
    between = re.search(r"<!-- options: .*? -->\n(.*?)\n<!-- /options -->", README, re.S)
    assert between[1] == option_tables(), "run `python tests/test_readme.py` and paste its output"


def test_the_support_table_is_that_of_the_tests():
    between = re.search(r"<!-- support: .*? -->\n(.*?)<!-- /support -->", README, re.S)
    assert between[1].strip() == support.table(), (
        "run `python tests/test_readme.py` and paste its output"
    )


def test_nothing_is_left_to_be_filled_in():
    assert "@@" not in README


def test_ci_calls_the_readmes_test_command():
    command = "python -m pip install uv && python -m uv run --group test pytest"
    assert f"```bash\n{command}\n```" in README
    assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text()


def test_the_yaml_shows_every_key_with_its_default():
    block = next(
        yaml.safe_load(text)
        for text in re.findall(r"```yaml\n(.*?)```", README, re.S)
        if "alphalora:" in text
    )["alphalora"]
    keys = set(AlphaLoraConfigBlock.model_fields) - {
        "total_experts",
        "total_parameters",
        "memory_mib",
    }
    assert set(block) == keys, "the other budgets are in comments: they exclude experts_per_block"
    given = AlphaLoraConfigBlock.model_validate(block)
    assert given.model_dump() == AlphaLoraConfigBlock().model_dump()


def test_the_allocation_shows_every_option_with_its_default():
    allocation = next(
        found["alphalora"]["allocation"]
        for text in re.findall(r"```yaml\n(.*?)```", README, re.S)
        if isinstance((found := yaml.safe_load(text))["alphalora"].get("allocation"), dict)
    )
    assert allocation == {
        "strategy": "alphalora",
        **registry().get("alphalora").options({}).model_dump(),
    }


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_is_described(name):
    assert f"\n| `{name}` | " in README


def test_no_lock_file_and_no_download_address_is_committed():
    import subprocess

    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not [name for name in files if name.endswith(".lock")]
    registries = ("pypi" + ".org", "pythonhosted" + ".org")
    for name in files:
        text = (ROOT / name).read_text(errors="ignore")
        assert not any(host in text for host in registries), name


if __name__ == "__main__":
    print(strategy_table())
    print()
    print(option_tables())
    print()
    print(support.table())
