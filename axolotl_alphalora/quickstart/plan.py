"""Plan the experts for a YAML and save the plan; runs as a process of its own.

Planning imports Axolotl and PyTorch, which takes seconds and prints warnings: both stay out of
the quickstart's own process.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(config: Path, output: Path) -> None:
    """Write the plan of a YAML.

    Args:
        config: The YAML.
        output: The plan's file.
    """
    from axolotl_alphalora.cli.plan import make_plan

    make_plan(config).save(output)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(str(error))
