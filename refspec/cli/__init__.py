"""The command line: options and printing. Everything else is in the modules the commands call.

Only this package imports click. `group` holds the command `refspec`, its error rule and the options commands share.
"""

from refspec.cli import generate, measure, train
from refspec.cli.group import main

__all__ = ["generate", "main", "measure", "train"]
