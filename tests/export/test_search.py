"""The smallest rank within a divergence, against the divergences of all ranks."""

import pytest
import torch

from axolotl_alphalora.evaluation import calibrate
from axolotl_alphalora.export import export_adapter
from axolotl_alphalora.export.run import lowest, smallest_rank
from helpers.balancing import adapted
from helpers.exporting import rows
from helpers.models import tiny_llama


@pytest.mark.parametrize("high", [1, 2, 7, 152])
def test_the_lowest_rank_is_found_in_few_steps(high):
    for want in {1, 2, high // 2, high - 1, high} - {0}:
        asked = []

        def enough(rank, want=want, asked=asked):
            asked.append(rank)
            return rank >= want

        assert lowest(high, enough) == min(want, high)
        assert len(asked) <= high.bit_length()


@pytest.fixture(scope="module")
def model():
    found = adapted(tiny_llama())
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "router" in name or "alphalora_B" in name:
                parameter *= 3
    return found.eval()


def export(model, folder, **options):
    model.save_pretrained(folder / "adapter")
    return export_adapter(
        model,
        folder / "adapter",
        folder / "lora",
        calibration=rows(6, 1),
        held_out=rows(4, 2),
        **options,
    )


@pytest.mark.works("Seeing and exporting", "`export --rank auto --max-kl X`: the smallest rank")
def test_the_rank_below_the_one_that_is_found_is_too_far(model, tmp_path):
    def price(**options):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return export(model, folder, **options)

    allowed = (price(rank=1).divergence.kl + price().divergence.kl) / 2
    found = price(rank="auto", max_kl=allowed)
    rank = max(found.ranks.values())
    assert 1 < rank < 12
    assert found.divergence.kl <= allowed < price(rank=rank - 1).divergence.kl
    assert found.divergence.kl == pytest.approx(price(rank=rank).divergence.kl, rel=1e-6)
    assert found.to_dict()["rank"] == "auto"
    assert list(model.peft_config) == ["default"]


def test_a_full_rank_that_is_too_far_is_an_error_and_nothing_is_written(model, tmp_path):
    with pytest.raises(ValueError, match=r"At full rank \(12\).*so no rank will do"):
        export(model, tmp_path, rank="auto", max_kl=1e-9)
    assert not (tmp_path / "lora").exists()


def test_auto_needs_to_know_what_is_allowed(model, tmp_path):
    with pytest.raises(ValueError, match="--rank auto looks for the smallest rank within --max-kl"):
        export(model, tmp_path, rank="auto")


def test_progress_names_the_ranks_that_are_tried(model):
    said = []

    def stage(what):
        said.append(what)
        return lambda names: lambda name: None

    moments = calibrate(model, rows(4, 1))
    found = smallest_rank(model, moments, rows(2, 2), 1e9, method="least-squares", stage=stage)
    assert found == 1
    assert said[:2] == ["Measuring rank 12", "Measuring rank 6"]
