"""Measurements: speed, acceptance, drift, equality, findings, checks of a pair, and what prints them."""
