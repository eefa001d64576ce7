"""Draft trees: structure, growth, the lossless rules, the decode cycle over them."""
