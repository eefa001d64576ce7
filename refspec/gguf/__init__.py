"""GGUF files: read, checked, described, written and recast.

    header                the header of a file, every number in it checked against the file's size
    io                    metadata, tensors and drafters, read and written; the only file that imports `gguf`'s writer
    complete              files that appear under their names when they are complete
    types, blocks, lazy   weight types by number; blocks of values encoded; tensors that stay on disk until needed
    drafter_meta          a drafter's configuration as metadata, its tensor names, and what stock llama.cpp cannot run
    target_checks         what must hold before llama.cpp may load a target
    recast                the same model with other weight types
    recommended_sampling  the sampling settings that a file recommends

No model runs here, and no trainer's checkpoint is read: that is `refspec.convert`.
"""
