"""What makes the pages under docs/ and the embedded pair. Not installed, never imported by refspec;

`python docs/lab COMMAND` from a checkout.
"""
