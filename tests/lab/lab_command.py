"""Calls `python docs/lab COMMAND` in this process."""

from click.testing import CliRunner, Result

from lab.cli import main


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])
