"""What the commands are made of: options with other names, help in sections, and failures that are one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import click

from refspec.errors import RefspecError, UsageError

INTERRUPTED = 130  # 128 + SIGINT
CLOSED_PIPE = 141  # 128 + SIGPIPE
TERMINATED = 143  # 128 + SIGTERM
WIDTH = 100  # columns of help, fewer where the terminal has fewer
OPTIONS, DRAFTING, SAMPLING, PENALTIES, GRAMMAR = "Options", "Drafting", "Sampling", "Penalties", "Grammar"
SPECIALISTS = "For specialists"
GGUF = "From a GGUF (-m)"
SECTIONS = (GGUF, OPTIONS, DRAFTING, SAMPLING, PENALTIES, GRAMMAR, SPECIALISTS)  # of a command's help, in this order
PATH = click.Path()  # for shells to complete; whether the file is there is said by what reads it


def note(line: str) -> None:
    """One line to stderr, even for a file name that has a line break in it."""
    click.echo("refspec: " + "\\n".join(line.splitlines()), err=True)


class Option(click.Option):
    """An option with its section of the help, and with other names: `also` is shown in the help, `old` is not."""

    def __init__(
        self, declarations: Sequence[str] | None = None, *, section: str = OPTIONS, also: Sequence[str] = (),
        old: Sequence[str] = (), **how: Any,
    ) -> None:  # fmt: skip
        super().__init__([*(declarations or ()), *also, *old], **how)
        self.section, self.also, self.old = section, tuple(also), tuple(old)


option = partial(click.option, cls=Option)


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator, in the order given."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def help_record(param: click.Option) -> tuple[str, str]:
    """(names and value, what it does) of an option: alike for every version of click."""
    others = (*getattr(param, "also", ()), *getattr(param, "old", ()))
    names = ", ".join(name for name in param.opts if name not in others)
    if param.secondary_opts:
        names += " / " + ", ".join(param.secondary_opts)
    if not param.is_flag:
        names += f" {_metavar(param)}"
    facts = [f"default: {_shown(param.default)}"] if param.show_default else []
    facts += ["required"] * param.required
    if also := getattr(param, "also", ()):
        facts.append(f"also {', '.join(also)}")
    return names, (param.help or "") + (f"  [{'; '.join(facts)}]" if facts else "")


def _metavar(param: click.Option) -> str:
    if param.metavar:
        return param.metavar
    if isinstance(param.type, click.Choice):
        return f"[{'|'.join(map(str, param.type.choices))}]"
    if isinstance(param.type, click.types.IntParamType):
        return "N"
    return "X" if isinstance(param.type, click.types.FloatParamType) else param.type.name.upper()


def _shown(default: Any) -> str:
    return ", ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)


class Command(click.Command):
    """A command whose help has a section for each kind of option, and whose counts fit into 32 bits."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        for param in self.params:
            if isinstance(param.type, click.IntRange) and param.type.max is None:
                param.type.max = (1 << 31) - 1

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those everyone needs first."""
        shown = [p for p in self.get_params(ctx) if isinstance(p, click.Option) and not p.hidden]
        for section in SECTIONS:
            if rows := [help_record(p) for p in shown if getattr(p, "section", OPTIONS) == section]:
                with formatter.section(section):
                    formatter.write_dl(rows)


class CommandWithMore(Command, click.Group):
    """A command that is also a group: without the name of one of its commands it runs itself."""

    command_class = Command

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **{**how, "invoke_without_command": True})

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and the commands below."""
        Command.format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


class Group(click.Group):
    """A group of such commands, in the order they are defined."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(self.commands)


class Terminated(BaseException):
    """SIGTERM or SIGHUP: the program ends as after Ctrl-C, leaving nothing half-written."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Signals that would end the process on the spot raise Terminated instead."""

    def end(_signum: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Refspec(Group):
    """A group whose every failure is one line on stderr: exit 1, or 2 for a wrong argument.

    `sections` are headings of the help and the commands under each; `gone` says what took the place of a command.
    """

    group_class = Group

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, gone: Mapping[str, str] | None = None,
        **how: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **how)
        self.sections, self.gone = sections or {}, gone or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the help."""
        return [name for names in self.sections.values() for name in names if name in self.commands]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, section by section."""
        indent = max(map(len, self.commands))
        width = formatter.width - indent - 6
        for heading, names in self.sections.items():
            with formatter.section(heading):
                shown = [self.commands[name] for name in names if name in self.commands]
                formatter.write_dl([(f"{c.name:<{indent}}", c.get_short_help_str(width)) for c in shown])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command of the first argument; UsageError that names the new one where it is gone."""
        if args and args[0] in self.gone:
            raise UsageError(f"`{args[0]}` is now `{self.gone[args[0]]}`")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, failures as one line."""
        debug = bool(os.environ.get("REFSPEC_DEBUG"))
        try:
            with ended_by_signals():
                return super().invoke(ctx)
        # The reader has gone, `refspec generate | head -1`: nobody wants the rest, nor a complaint.
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (sys.stdout, sys.stderr):
                os.dup2(nowhere, stream.fileno())
            ctx.exit(CLOSED_PIPE)
        except Terminated:
            note("terminated")
            ctx.exit(TERMINATED)
        except KeyboardInterrupt:
            if debug:
                raise
            note("interrupted")
            ctx.exit(INTERRUPTED)
        except RefspecError as error:
            if debug:
                raise
            note(str(error))
            ctx.exit(2 if isinstance(error, UsageError) else 1)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except OSError as error:
            if debug:
                raise
            note(f"{error.filename or 'the output'}: {error.strerror or error}")
            ctx.exit(1)
        except MemoryError:
            if debug:
                raise
            note("out of memory; try a smaller context (-c) or file")
            ctx.exit(1)
        except Exception as error:
            if debug:
                raise
            what = " ".join(str(error).split())
            note(f"{type(error).__name__}: {what} (unexpected; set REFSPEC_DEBUG=1 to see where, and please report it)")
            ctx.exit(1)


# Flags of the last release: what was given of them is kept here until the option in their place is read.
_GIVEN = "refspec.cli.old"
_BOTH = {frozenset({"repack", "stored"}): "stored", frozenset({"refspec", "stored"}): "refspec"}


def old_flag(declaration: str, name: str, meaning: Callable[[bool], str]) -> Callable[[Any], Any]:
    """A hidden flag that sets the option `name`, which must have `or_old` as its callback."""

    def keep(ctx: click.Context, param: click.Parameter, value: bool | None) -> None:
        if value is not None:
            spelled = param.opts[0] if value else param.secondary_opts[0]
            ctx.meta.setdefault(_GIVEN, []).append((name, spelled, meaning(value)))

    return click.option(
        declaration, is_flag=True, default=None, hidden=True, is_eager=True, expose_value=False, callback=keep
    )


def or_old(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """What the option says, or else flags of the last release, with a note of the new spelling."""
    given = {spelled: meant for name, spelled, meant in ctx.meta.get(_GIVEN, ()) if name == param.name}
    if not given:
        return value
    meanings = frozenset(given.values())
    if len(meanings) > 1 and meanings not in _BOTH:
        raise UsageError(f"{' and '.join(given)} exclude each other; leave one of them out")
    meant = _BOTH.get(meanings) or next(iter(meanings))
    note(f"{' '.join(given)} is now {param.opts[0]} {meant}; the old name goes with the next release")
    return meant if value in (None, param.default) else value
