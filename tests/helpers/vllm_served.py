"""What the tests with a real vLLM serve: SmolLM2-135M, adapters of it, and PEFT's answers."""

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.quickstart.rows import make_rows
from helpers.vllm_engine import NEW_TOKENS

LIMIT = 1e-4
"""How far log probabilities may be apart."""
FINE = {"segments": 2, "router_rank": 8, "share_a": True, "top_k": 0.5}
ADAPTERS = {
    "plain": {},
    "fine": FINE,
    "fine again": FINE | {"seed": 1, "lora_alpha": 24},
    "top-1": {"top_k": 1, "use_rslora": True},
}
"""Name to what is not as usual."""


def counts(model):
    """Experts of every linear layer: other numbers in each, none in one block, one in another."""
    names = [n for n, m in model.named_modules() if n.endswith("_proj")]
    blocks = {name: int(name.split(".")[2]) for name in names}
    found = {name: 1 + (blocks[name] + i % 7) % 5 for i, name in enumerate(names)}
    for name, block in blocks.items():
        if block in (3, 4):
            found[name] = 4 - block
        if block > 20:
            found[name] = 3  # in all of a block, as in most plans
    return found


class Base:
    """The base model, eight prompts, and PEFT's side of things."""

    def __init__(self, folder):
        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        train, held_out = make_rows()
        shown = [f"{r['instruction']}\n{r['input']}\n" for r in [*train[:8], *held_out[:8]]]
        self.texts = [
            f"{text}{row['output']}\n\n{asked}"
            for text, row, asked in zip(shown[:8], train[:8], shown[8:], strict=True)
        ]
        self.prompts = [self.tokenizer(text).input_ids for text in self.texts]

    def load(self):
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    def adapter(self, folder, seed=0, **options):
        """Save an adapter with random weights that changes the base's answers."""
        model = self.load()
        torch.manual_seed(seed)
        config = AlphaLoraConfig(
            r=8, num_experts=counts(model), rank_pattern={"model.layers.9.mlp.up_proj": 4},
            init_weights=False, task_type="CAUSAL_LM", **{"lora_alpha": 16} | options,
        )  # fmt: skip
        config.base_model_name_or_path = str(self.folder)
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "alphalora_B" in name:
                    weight *= 0.5
        adapted.save_pretrained(folder)

    def peft(self, folder, model=None):
        """Greedy continuations of the prompts, and the log probabilities of their tokens."""
        model = model or self.load()
        model = PeftModel.from_pretrained(model, folder) if folder else model
        greedy = []
        for prompt in self.prompts:
            ids = torch.tensor([prompt])
            with torch.no_grad():
                row = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                    min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, eos_token_id=-1,
                )  # fmt: skip
            greedy.append(row[0, len(prompt) :].tolist())
        return greedy, self.scores(model, greedy)

    def exact(self, folder, answers):
        """The same of answers that are given, in fp64."""
        model = self.load().double()
        return self.scores(PeftModel.from_pretrained(model, folder).double(), answers)

    def scores(self, model, answers):
        """Log probabilities of the tokens of answers to the prompts."""
        found = []
        for prompt, answer in zip(self.prompts, answers, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
            at = torch.arange(len(prompt), len(prompt) + len(answer))
            found.append(logits[at - 1, torch.tensor(answer)].tolist())
        return found


def llm(base, folder, **options):
    return {
        "model": str(base.folder),
        "load_format": "alphalora",
        "additional_config": {"alphalora": str(folder)},
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,  # a prompt is read in pieces
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "block_size": 32,  # of a prefix
    } | options


def same(got, greedy, references):
    """Check what vLLM answers: each prompt agrees with PEFT in fp32 or in fp64.

    Where two experts of a router are all but equal, rounding decides which one is taken.
    """
    assert got["greedy"] == got["again"] == greedy
    prompts = zip(got["scores"], *references, strict=True)
    far = max(min(distance(own, other) for other in others) for own, *others in prompts)
    print("largest difference of a log probability:", far)
    assert far < LIMIT


def distance(one, two):
    return max(abs(a - b) for a, b in zip(one, two, strict=True))
