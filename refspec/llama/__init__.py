"""Everything that touches llama.cpp: models, contexts, targets and drafters; only `api.py` imports `llama_cpp`."""
