"""What we use of PEFT, accelerate, transformers and torch that they may move: one file for each.

Every name stands here once, with what it is needed for; `tests/test_contracts.py` checks each
against the installed release. Axolotl's are in `plugin/host.py`.
"""
