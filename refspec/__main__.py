"""`python -m refspec` is the `refspec` command."""

from refspec.cli import main

if __name__ == "__main__":
    main(prog_name="refspec")
