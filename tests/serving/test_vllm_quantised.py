"""A real vLLM serves a routed adapter on a quantised base; run by `.ci/vllm`."""

import copy
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.vllm_served import llm

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="needs vLLM: .ci/vllm has it"
)


def quantise(model, folder):
    """Write a model as GPTQ does, 4 bits in groups of 32, and leave in it what that means."""
    group, tensors = 32, {}
    for name, module in model.named_modules():
        if not name.endswith("_proj"):
            continue
        groups = module.weight.data.T.unflatten(0, (-1, group))  # [in / group, group, out]
        scales = (groups.abs().amax(1) / 7).clamp_min(1e-6).to(torch.bfloat16)
        levels = (groups / scales.unsqueeze(1)).round().clamp(-8, 7).to(torch.int32)
        module.weight.data = (levels * scales.unsqueeze(1)).flatten(0, 1).T.float().contiguous()
        bits = (levels.flatten(0, 1) + 8).unflatten(0, (-1, 8))
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)[:, None]
        into, out = module.in_features, module.out_features
        tensors |= {
            f"{name}.qweight": (bits << shifts).sum(1, dtype=torch.int32),
            f"{name}.qzeros": torch.full((into // group, out // 8), 0x77777777, dtype=torch.int32),
            f"{name}.scales": scales,
            f"{name}.g_idx": torch.arange(into, dtype=torch.int32) // group,
        }
    for name, tensor in model.state_dict().items():
        if "_proj." not in name and name != "lm_head.weight":
            tensors[name] = tensor.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.untested("Serving", "GPTQ bases in vLLM (4 bits)", "in CI; `.ci/vllm` runs it")
def test_a_quantised_base_keeps_its_own_product(base, ask, tmp_path):
    """In bfloat16, which its kernel wants: the adapter adds little to the base's own error, which
    is far below what the adapter changes."""
    base.adapter(folder := tmp_path / "adapter", lora_alpha=64)  # more than bfloat16 loses
    for file in Path(base.folder).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True,
        "lm_head": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    quantise(model := base.load(), tmp_path)
    greedy, scores = base.peft(folder, copy.deepcopy(model))
    extra = {"alphalora": str(folder), "alphalora_any_base": True}
    options = {"model": str(tmp_path), "dtype": "bfloat16", "enforce_eager": True}
    routed = ask(llm(base, folder, additional_config=extra, **options), greedy)
    alone = ask(llm(base, folder, load_format="auto", additional_config={}, **options), greedy)

    own = base.scores(model, greedy)  # the base's, in fp32

    def distance(found, wanted):
        pairs = zip(sum(found, []), sum(wanted, []), strict=True)
        return sum(abs(a - b) for a, b in pairs) / len(sum(wanted, []))

    effect, error = distance(own, scores), distance(alone["scores"], own)
    print("the adapter's effect, the base's own error:", effect, error)
    print("the routed adapter's error:", found := distance(routed["scores"], scores))
    assert found < 2 * error < effect
