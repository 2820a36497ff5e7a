"""What an adapter answers, written down, to ask a server whether it serves it. Knows no Axolotl."""

from .answers import Answer, Asked, Probe, Step, read_probe
from .asking import ask_model, ask_server
from .verdict import Verdict, judge, separations
from .writing import make_probe, prompts_of

__all__ = [
    "Answer",
    "Asked",
    "Probe",
    "Step",
    "Verdict",
    "ask_model",
    "ask_server",
    "judge",
    "make_probe",
    "prompts_of",
    "read_probe",
    "separations",
]
