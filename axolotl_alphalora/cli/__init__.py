"""The command group `alphalora`: by itself, and as a verb of Axolotl's command line."""

from __future__ import annotations

from importlib import import_module

import click

# Help texts stand here too, so that `alphalora --help` need not import the commands.
_COMMANDS = {
    "analyze": ("analyze:analyze", "Print how well each block of a model is trained."),
    "config-schema": (
        "strategies:config_schema",
        "Print the JSON schema of the `alphalora:` block.",
    ),
    "export": ("export:export", "Write a plain LoRA that stands in for a routed adapter."),
    "inspect": ("inspect:inspect", "Show what the experts of a trained adapter have learnt."),
    "lm-eval": ("lm_eval:lm_eval", "Evaluate a trained adapter with the LM Evaluation Harness."),
    "plan": ("plan:plan", "Print how many experts each block gets, and why."),
    "probe": ("probe:probe", "Ask a server whether it serves an adapter or an export."),
    "quickstart": (
        "quickstart:quickstart",
        "Fine-tune a real model with AlphaLoRA, end to end, on any machine.",
    ),
    "serve": ("serve:serve", "Serve a routed adapter over HTTP, by vLLM where it is installed."),
    "strategies": ("strategies:strategies", "List the strategies that share out experts."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used: their imports take seconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None for an unknown name."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        return getattr(import_module(f".{module}", __name__), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands' first sentences without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup)
@click.version_option(package_name="axolotl-alphalora")
def alphalora() -> None:
    """Mixtures of LoRA experts whose number differs from block to block."""
