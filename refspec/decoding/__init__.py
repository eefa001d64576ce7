"""The decode cycle and what it is made of:

the protocols `Target` and `Drafter`, drafters and wrappers in plain Python, one generation.
"""
