"""``alphalora config-schema``: what Axolotl's command of that name cannot know of plugins."""

from __future__ import annotations

import json

import click

from .output import only_output


@click.command("config-schema")
def config_schema() -> None:
    """Print the JSON schema of the `alphalora:` block.

    `axolotl config-schema` prints the host's own options without those of plugins.
    """
    with only_output() as emit:
        from ..planning.config import AlphaLoraConfigBlock

        emit(json.dumps(AlphaLoraConfigBlock.model_json_schema(), indent=2))
