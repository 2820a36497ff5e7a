"""Our alpaca prompt against the host's tokenisation of the same rows."""

import pytest
from axolotl.utils.data.wrappers import get_dataset_wrapper
from axolotl.utils.dict import DictDefault
from datasets import Dataset

from axolotl_alphalora.evaluation.samples import encode_alpaca
from axolotl_alphalora.quickstart.rows import make_rows

from .conftest import tiny_tokenizer


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("sequence_len", [256, 40])
def test_tokens_and_labels_equal_the_hosts(bos, sequence_len):
    rows = make_rows()[1]
    tokenizer = tiny_tokenizer(bos=bos)
    wrapped, _ = get_dataset_wrapper(
        dataset_config=DictDefault(type="alpaca"),
        tokenizer=tokenizer,
        cfg=DictDefault(train_on_inputs=False, sequence_len=sequence_len, dataset_num_proc=1),
        dataset_base_type="alpaca",
        dataset=Dataset.from_list(rows),
        dataset_prompt_style=None,
    )
    ours = [encode_alpaca(row, tokenizer, sequence_len) for row in rows]
    assert [(row["input_ids"], row["labels"]) for row in wrapped] == ours
