"""GGUF files: read, written, checked, recast.

No model runs here and no trainer's checkpoint is read (that is `refspec.convert`).
"""
