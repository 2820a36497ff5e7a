"""The command group ``alphalora``: by itself, and as a verb of Axolotl's command line."""

from __future__ import annotations

from importlib import import_module

import click

_COMMANDS = {"plan": "plan:plan", "quickstart": "quickstart:quickstart"}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used: their imports take seconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None for an unknown name."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        return getattr(import_module(f".{module}", __name__), attribute)


@click.group(cls=LazyGroup)
@click.version_option(package_name="axolotl-alphalora")
def alphalora() -> None:
    """Mixtures of LoRA experts whose number differs from block to block."""
