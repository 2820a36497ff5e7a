"""The section on the experts in a run's model card."""

from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.plugin.training import add_section, describe_in_cards
from helpers.allocating import planned
from helpers.balancing import adapted


def config(made) -> AlphaLoraConfig:
    return AlphaLoraConfig(r=8, num_experts=made.counts, plan=made.to_dict())


@pytest.fixture(name="planned")
def a_plan():
    return planned()


def test_it_is_added_once_and_everything_else_stays(planned, tmp_path):
    card = tmp_path / "README.md"
    card.write_text("---\nlibrary_name: peft\n---\n\n# Mine\n")
    add_section(tmp_path, config(planned))
    once = card.read_text()
    assert once.startswith("---\nlibrary_name: peft\n---\n\n# Mine\n\n<!-- axolotl-alphalora -->")
    card.write_text(once + "\nA note by hand.\n")
    add_section(tmp_path, config(planned))
    assert card.read_text().count("## Experts (AlphaLoRA)") == 1
    assert card.read_text().rstrip().endswith("A note by hand.")


def test_an_end_that_was_taken_out_by_hand_costs_no_text(planned, tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# Mine\n")
    add_section(tmp_path, config(planned))
    card.write_text(card.read_text().replace("<!-- /axolotl-alphalora -->", "A note by hand."))
    add_section(tmp_path, config(planned))
    assert "A note by hand." in card.read_text()


def test_without_a_card_there_is_none(planned, tmp_path):
    add_section(tmp_path, config(planned))
    assert not (tmp_path / "README.md").exists()


def test_the_trainer_s_card_and_the_model_s_end_in_it(tiny_llama, tmp_path):
    out = tmp_path / "out"
    trainer = Trainer(
        model=adapted(tiny_llama),
        args=TrainingArguments(output_dir=str(out), use_cpu=True, report_to="none"),
    )
    describe_in_cards(trainer)
    trainer.save_model()
    assert "## Experts (AlphaLoRA)" in (out / "README.md").read_text()
    trainer.create_model_card(model_name="mine")
    card = Path(out / "README.md").read_text()
    assert card.count("## Experts (AlphaLoRA)") == 1
    assert "# mine" in card and "library_name: peft" in card
