"""What a user measures of a pair: speed, acceptance, drift, equality, checks."""
