"""The command line: options and printing. Everything else is in the modules the commands call.

Only this package imports click. `group` holds the command `refspec`, its error rule and the options commands share.
"""

# Importing a module of commands is what registers them with the group.
import refspec.cli.acceptance
import refspec.cli.check
import refspec.cli.convert
import refspec.cli.drift
import refspec.cli.export
import refspec.cli.generate
import refspec.cli.measure
import refspec.cli.recast
import refspec.cli.regenerate
import refspec.cli.stock
import refspec.cli.train
import refspec.cli.tune  # noqa: F401
from refspec.cli.group import main

__all__ = ["main"]
