"""Everything that touches llama.cpp: models, contexts, hidden states, targets and drafters.

Only `api.py` imports `llama_cpp`.
"""
