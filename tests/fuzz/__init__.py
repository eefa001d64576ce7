"""Hostile files by the thousand: `make fuzz N=10000`, and 500 of them in the ordinary tests.

    seeds     sound files of every kind that refspec reads
    mutate    what is done to them, knowing their format
    worker    one case after another in a process that may end, hang or swell: the readers, then llama.cpp
    campaign  cases handed to workers, and counted

A case is a number: the same number makes the same file.
"""
