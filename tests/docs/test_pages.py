"""README and docs say what the code does, and can be read in ten minutes."""

import re
import subprocess
from importlib.util import find_spec

import pytest
import yaml

import generate
from axolotl_alphalora.allocation import registry
from axolotl_alphalora.settings import ESTIMATORS

README = (generate.ROOT / "README.md").read_text()
PAGES = {str(page.relative_to(generate.ROOT)): page.read_text() for page in generate.pages()}
BENCHMARKS = sorted(set(re.findall(r"benchmarks\.[a-z_]\w+", "".join(PAGES.values()))))


def check(name):
    assert PAGES[name] == generate.written(PAGES[name]), f"run `{generate.COMMAND}`"


@pytest.mark.parametrize("name", [name for name in PAGES if name != "docs/support.md"])
def test_a_page_says_what_the_code_says(name):
    check(name)


@pytest.mark.usefixtures("fresh_process")
def test_the_support_table_says_what_the_tests_say():
    check("docs/support.md")


def test_every_part_is_on_a_page():
    text = "".join(PAGES.values())
    assert [name for name in generate.PARTS if f"<!-- {name}: written by " not in text] == []


@pytest.mark.parametrize("broken", ["nothing: written by us -->\n", "works: written by us -->\n"])
def test_a_part_that_is_unknown_or_has_no_end_is_an_error(broken):
    with pytest.raises(ValueError, match="nobody writes nothing|has no end"):
        generate.written(f"<!-- {broken}<!-- /nothing -->")


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 250
    assert len(README.split()) <= 2000


def test_every_page_is_in_the_readme():
    assert [name for name in PAGES if name != "README.md" and f"]({name})" not in README] == []


def test_ci_calls_the_readmes_test_command():
    command = "python -m pip install uv && python -m uv run --group test pytest"
    assert f"```bash\n{command}\n```" in README
    assert f"\n{command}\n" in (generate.ROOT / ".ci" / "run").read_text()


def block() -> dict:
    (text,) = (text for text in re.findall(r"```yaml\n(.*?)```", README, re.S))
    return yaml.safe_load(text)["alphalora"]


def test_the_yaml_shows_every_key_with_its_default():
    others = {"total_experts", "total_parameters", "memory_mib"}
    assert set(block()) == set(generate.Block.model_fields) - others
    assert all(re.search(rf"^  # {key}: ", README, re.M) for key in others)
    given = generate.Block.model_validate(block())
    assert given.model_dump() == generate.Block().model_dump()


def test_the_allocation_shows_every_option_with_its_default():
    text = re.search(r"<!-- allocation: .*?```yaml\n(.*?)```", PAGES["docs/layer-quality.md"], re.S)
    assert yaml.safe_load(text[1])["alphalora"]["allocation"] == {
        "strategy": "alphalora",
        **registry().get("alphalora").options({}).model_dump(),
    }


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_is_described(name):
    assert f"\n| `{name}` | " in PAGES["docs/layer-quality.md"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_that_a_page_names_is_there(name):
    assert find_spec(name) is not None


def test_every_option_of_a_benchmark_that_a_page_names_is_there():
    folder = generate.ROOT / "benchmarks"
    common = (folder / "common.py").read_text()
    commands = [
        found
        for page in generate.pages()
        for found in re.findall(r"-m benchmarks\.([a-z_]+)\b([^`\n|]*)", page.read_text())
    ]
    assert any("--" in options for _, options in commands)
    for name, options in commands:
        file = folder / f"{name}.py"
        file = file if file.exists() else folder / name / "__main__.py"
        known = file.read_text() + common
        for option in re.findall(r"--[\w-]+", options):
            assert f'"{option}"' in known, (name, option)


def test_no_lock_file_and_no_download_address_is_committed():
    files = subprocess.run(
        ["git", "ls-files"], cwd=generate.ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not [name for name in files if name.endswith(".lock")]
    registries = ("pypi" + ".org", "pythonhosted" + ".org")
    for name in files:
        text = (generate.ROOT / name).read_text(errors="ignore")
        assert not any(host in text for host in registries), name
