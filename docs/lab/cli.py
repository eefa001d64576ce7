"""Registers every command of the laboratory."""

# Importing a module of commands is what registers them with the group.
import lab.cli_answers
import lab.cli_context
import lab.cli_convert_speed
import lab.cli_findings
import lab.cli_grid
import lab.cli_inflate
import lab.cli_replay  # noqa: F401
from lab.group import lab as main

__all__ = ["main"]
