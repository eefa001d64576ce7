"""docs/cli.md, made from the help: `python -m refspec.cli.reference > docs/cli.md`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from refspec.cli import main
from refspec.cli.command import WIDTH

HEAD = """# The command line

Made from the help by `make docs`; a test says when it is out of date. Everything here is also printed by
`refspec COMMAND -h`.

Text goes to stdout, everything else to stderr; `--json` prints one object. The exit code is 0, 1 for a failure, which
is one line, 2 for a wrong argument, 130 after Ctrl-C. Where a setting has another name in llama.cpp, that name works
too and is shown after "also".

## Which command when

| you want to | command |
| --- | --- |
| see speculation at work | `refspec generate --compare -p "Why is the sky blue?"` |
| get JSON, or what a grammar allows | `refspec generate --json-schema FILE`, `--regex RE`, `--grammar FILE` |
| use a drafter from Hugging Face | `refspec convert`, then `refspec check`, then `refspec generate -m ... -d ...` |
| know whether it pays on this machine | `refspec tune`, once; `refspec bench` measures prompts |
| know what a file is | `refspec inspect` |
| run a drafter in llama.cpp's own programs | `refspec convert --stock` |
| train a drafter | `refspec train` |

## Shell completion

| shell | once, in its start-up file |
| --- | --- |
| bash | `eval "$(_REFSPEC_COMPLETE=bash_source refspec)"` in `~/.bashrc` |
| zsh | `eval "$(_REFSPEC_COMPLETE=zsh_source refspec)"` in `~/.zshrc` |
| fish | `_REFSPEC_COMPLETE=fish_source refspec \\| source` in `~/.config/fish/completions/refspec.fish` |

`refspec` must be on the path: activate the virtual environment, or link `.venv/bin/refspec` to a directory that is.
"""


def page() -> str:
    """The text of docs/cli.md."""
    return HEAD + "".join(_command(main, "refspec", None))


def _command(command: click.Command, name: str, above: click.Context | None) -> Iterator[str]:
    """The help of a command and of those under it, as sections."""
    ctx = command.context_class(command, info_name=name, parent=above, terminal_width=WIDTH, **command.context_settings)
    yield f"\n## {ctx.command_path}\n\n```text\n{command.get_help(ctx)}\n```\n"
    if isinstance(command, click.Group):
        for each in command.list_commands(ctx):
            yield from _command(command.commands[each], each, ctx)


if __name__ == "__main__":
    print(page(), end="")
