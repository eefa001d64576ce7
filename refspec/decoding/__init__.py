"""The decode cycle, the protocols `Target` and `Drafter`, drafters and wrappers in plain Python, one generation."""
