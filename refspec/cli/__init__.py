"""The command line: options and printing. Everything else is in the modules the commands call.

Only this package imports click. `command` is what commands are made of, `group` holds the command `refspec` and the
options commands share. docs/cli.md is made from the help by `python -m refspec.cli.reference`.
"""

# Importing a module of commands is what registers them with the group.
import refspec.cli.acceptance
import refspec.cli.bench
import refspec.cli.chat
import refspec.cli.check
import refspec.cli.convert
import refspec.cli.drift
import refspec.cli.export
import refspec.cli.generate
import refspec.cli.inspect
import refspec.cli.models
import refspec.cli.recast
import refspec.cli.regenerate
import refspec.cli.train
import refspec.cli.tune
import refspec.cli.verify  # noqa: F401
from refspec.cli.group import main

__all__ = ["main"]
