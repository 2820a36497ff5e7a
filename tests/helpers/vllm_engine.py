"""Ask a vLLM in a process of its own: `python vllm_engine.py ASKED.json ANSWERED.json`.

Asked with `llm` (its options), `prompts` and `answers` (token ids), it answers with the `greedy`
continuations, those it gives `again`, and with `scores`: the log probability of every token of an
answer after its prompt.
"""

import json
import sys
from pathlib import Path

NEW_TOKENS = 12


def main(asked):
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(**asked["llm"])

    def run(rows, **sampling):
        prompts = [TokensPrompt(prompt_token_ids=row) for row in rows]
        return llm.generate(prompts, SamplingParams(temperature=0.0, **sampling), use_tqdm=False)

    made = run(asked["prompts"], max_tokens=NEW_TOKENS, ignore_eos=True)
    again = run(asked["prompts"], max_tokens=NEW_TOKENS, ignore_eos=True)  # from cached prefixes
    rows = [p + a for p, a in zip(asked["prompts"], asked["answers"], strict=True)]
    found = []
    for row, out in zip(rows, run(rows, max_tokens=1, prompt_logprobs=0), strict=True):
        pairs = zip(row, out.prompt_logprobs, strict=True)
        found.append([each[token].logprob for token, each in pairs if each])
    scores = [f[-len(a) :] for f, a in zip(found, asked["answers"], strict=True)]
    ids = [[list(out.outputs[0].token_ids) for out in each] for each in (made, again)]
    return {"greedy": ids[0], "again": ids[1], "scores": scores}


if __name__ == "__main__":
    asked, answered = map(Path, sys.argv[1:])
    answered.write_text(json.dumps(main(json.loads(asked.read_text()))))
