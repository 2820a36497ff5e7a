"""What of the hosts is installed here, and what is left out where something is not."""

import traceback
from importlib.util import find_spec
from pathlib import Path

import peft
import pytest
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION

TRANSFORMERS_TAKES_PEFT = Version(peft.__version__) >= Version(MIN_PEFT_VERSION)
needs_add_adapter_of_transformers = pytest.mark.skipif(
    not TRANSFORMERS_TAKES_PEFT, reason=f"transformers wants PEFT {MIN_PEFT_VERSION} for it"
)

ROOT = Path(__file__).parents[2]
ABOVE_THE_CORE = ("tests", "benchmarks", "axolotl_alphalora/plugin", "axolotl_alphalora/quickstart")
WITHOUT_THE_HOST = find_spec("axolotl") is None


def wanted_package(error: BaseException | None) -> str | None:
    """Where Axolotl is not installed: the package that a test, not the core, wanted in vain."""
    if not (WITHOUT_THE_HOST and isinstance(error, ModuleNotFoundError)):
        return None
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    frames = [path for path in frames if path.is_absolute()]  # not those of the import itself
    above = any(frames[-1].is_relative_to(ROOT / folder) for folder in ABOVE_THE_CORE)
    return error.name if above else None
