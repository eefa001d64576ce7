"""What makes the pages under docs/ and the embedded pair: `python docs/lab COMMAND`, from a checkout.

Not installed, and never imported by refspec.
"""
