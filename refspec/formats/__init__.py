"""Files: GGUF and checkpoints read, written, described. No model runs here."""
