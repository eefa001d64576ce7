"""Targets: what verifies. `base.py` is the protocol, `llama.py` any GGUF that llama.cpp loads."""
