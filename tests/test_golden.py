"""What users see of two small models is what it was: plans, texts, pages, an adapter, its export.

The files in `golden/` hold it. Words must be the same; figures may differ as between two machines.
A change that is meant is written with `ALPHALORA_GOLDEN=write`, and named in the changelog.
"""

import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import peft
import pytest
import torch
import yaml
from click.testing import CliRunner

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.cli import alphalora
from helpers.deep import base
from helpers.models import word_tokenizer

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ("llama", "qwen2-moe")
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")

COMMANDS = {
    "plan.txt": ["plan", "{yaml}"],
    "plan.json": ["plan", "{yaml}", "--json"],
    "plan-modules.txt": ["plan", "{yaml}", "--per-module", "--confidence"],
    "plan-mola.txt": ["plan", "{model}", "--strategy", "mola:2468"],
    "plan-compare.txt": ["plan", "{yaml}", "--compare", "mola:2468", "uniform"],
    "plan-as-lora.yml": ["plan", "{yaml}", "--as-lora"],
    "plan.html": ["plan", "{yaml}", "--plot", "{out}/plan.html"],
    "compare.html": ["plan", "{yaml}", "--plot", "{out}/compare.html", "--compare", "uniform"],
    "analyze.txt": ["analyze", "{model}", "--per-module"],
    "analyze.json": ["analyze", "{model}", "--json", "--estimator", "hill"],
    "analyze-compare.txt": ["analyze", "{model}", "--compare", "hill,ks"],
    "inspect.txt": ["inspect", "{adapter}", "--per-module"],
    "inspect.json": ["inspect", "{adapter}", "--json"],
    "inspect-data.txt": ["inspect", "{adapter}", "--data", "{rows}", "--samples", "6"],
    "inspect.html": ["inspect", "{adapter}", "--plot", "{out}/inspect.html"],
    "export.txt": ["export", "{adapter}", "--data", "{rows}", "--output", "{out}/lora"],
    "export.json": ["export", "{adapter}", "--data", "{rows}", "--output", "{out}/same", "--json"]
    + ["--rank", "4", "--same-rank"],
}
"""Name of a golden file to the command whose output, or page, it holds."""


class Text(HTMLParser):
    """The text of a page that a reader sees, with a line for each cell, and what is drawn."""

    def __init__(self):
        super().__init__()
        self.hidden, self.lines = False, []

    def handle_starttag(self, tag, attrs):
        self.hidden = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.hidden = False

    def handle_data(self, data):
        if not self.hidden and data.strip():
            self.lines.append(" ".join(data.split()))


def page_text(path):
    reader = Text()
    reader.feed(path.read_text())
    return "\n".join(reader.lines) + "\n"


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """What `plan` says of the study changes as that goes on, and `--as-lora` asks for a GPU."""
    monkeypatch.setattr("axolotl_alphalora.planning.as_lora._has_gpu", lambda: False)
    nothing = {"where": "nowhere", "plans": []}
    monkeypatch.setattr("axolotl_alphalora.report.evidence.read_study", lambda: nothing)


@pytest.fixture(scope="module", params=FAMILIES)
def places(request, tmp_path_factory):
    """A model, its YAML, rows and a routed adapter, by the names that the commands use."""
    folder = tmp_path_factory.mktemp(request.param)
    found = {"family": request.param, "folder": str(folder)}
    found |= {
        name: str(folder / path)
        for name, path in {
            "model": "base",
            "yaml": "config.yml",
            "adapter": "adapter",
            "rows": "rows.jsonl",
            "out": "out",
        }.items()
    }
    made = base(request.param)
    made.save_pretrained(found["model"])
    model = type(made).from_pretrained(found["model"])
    word_tokenizer().save_pretrained(found["model"])
    config = {
        "base_model": found["model"],
        "plugins": ["axolotl_alphalora.AlphaLoraPlugin"],
        "adapter": "alphalora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "alphalora": {"experts_per_block": 3},
    }
    Path(found["yaml"]).write_text(yaml.safe_dump(config))
    texts = [" ".join(f"w{(i * 7 + j * 5) % 90 + 5}" for j in range(24)) for i in range(12)]
    Path(found["rows"]).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    plan = Plan.from_dict(json.loads(run(found, ["plan", "{yaml}", "--json"])))
    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        model,
        AlphaLoraConfig(
            base_model_name_or_path=found["model"],
            r=plan.rank,
            lora_alpha=8,
            num_experts=plan.counts,
            plan=plan.to_dict(),
            task_type="CAUSAL_LM",
        ),
    )
    generator = torch.Generator().manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "alphalora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator) / 10
    adapted.save_pretrained(found["adapter"])
    word_tokenizer().save_pretrained(found["adapter"])
    return found


def run(places, arguments):
    """What a command prints; of a page, its text."""
    arguments = [part.format(**places) for part in arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        done = CliRunner().invoke(alphalora, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    page = next((part for part in arguments if part.endswith(".html")), None)
    return done.stdout if page is None else page_text(Path(page))


def words_and_numbers(text, places):
    """The text with a mark for each number, and the numbers."""
    text = re.sub(r"\s*".join(re.escape(part) for part in places["folder"]), "<here>", text)
    text = re.sub(r"[█▉▊▋▌▍▎▏━]+", "<bar>", text)
    numbers = [float(found.replace(",", "").rstrip(".")) for found in NUMBER.findall(text)]
    return " ".join(NUMBER.sub("#", text).split()), numbers


def check(name, text, places):
    path = GOLDEN / places["family"] / name
    if os.environ.get("ALPHALORA_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace(places["folder"], "<here>"))
    words, numbers = words_and_numbers(text, places)
    known_words, known_numbers = words_and_numbers(path.read_text(), places)
    assert words == known_words
    assert numbers == pytest.approx(known_numbers, rel=2e-2, abs=2e-2)


@pytest.mark.usefixtures("combinations")
@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_says(places, name):
    check(name, run(places, COMMANDS[name]), places)


def test_a_saved_adapter_has_the_same_bytes(places):
    folder = Path(places["adapter"])
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = sorted(config["target_modules"])  # PEFT saves a set
    digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    check("adapter_config.json", json.dumps(config | {"weights": digest}, indent=2) + "\n", places)
    known = json.loads((GOLDEN / places["family"] / "adapter_config.json").read_text())
    assert digest == known["weights"]


def test_what_the_card_says(places):
    from axolotl_alphalora.report.markdown import experts_section

    check("card.md", experts_section(AlphaLoraConfig.from_pretrained(places["adapter"])), places)
