"""The laboratory's command line: each command lies in the module of its name and is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

import click

from refspec.cli.command import Refspec
from refspec.errors import UsageError

COMMANDS = {
    "replay": "Fixed and adaptive draft lengths over recorded drafts, in computed time.",
    "context": "What a token costs after long prompts, plain and drafted.",
    "inflate": "Give a small target a large one's cost, for benchmarks.",
    "convert-speed": "Memory and speed of `refspec convert` beside copying the file.",
    "prompts": "The prompts that the SmolLM2 drafter learned from.",
    "answers": "How a target's greedy answers end, repeat themselves, parse and add up.",
    "repetition": "How much the answers of a data set repeat themselves.",
    "sound": "Keep the answers of a data set that rules find nothing wrong with.",
    "unlikelihood": "Train a target that learns against its own repetitions.",
    "average": "Average a target's weights before and after a short training.",
    "grid": "Train every drafter of a plan.",
    "findings": "Measure the drafters of a plan, and write docs/findings.md.",
}
TRAINING = ("torch", "tokenizers", "safetensors", "tqdm", "filelock")  # the `train` extra


class Lab(Refspec):
    """A group that imports a command's module when the command is asked for: not all of them need torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """`command` of the module; UsageError where the `train` extra is missing."""
        if cmd_name not in COMMANDS:
            return None
        try:
            command: click.Command = import_module("lab." + cmd_name.replace("-", "_")).command
        except ModuleNotFoundError as error:
            if error.name not in TRAINING:
                raise
            raise UsageError(f"{cmd_name} needs {error.name}: .venv/bin/pip install -e '.[train]'") from None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of COMMANDS, so that the help imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Lab, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """What makes the pages under docs/ and the embedded pair."""
