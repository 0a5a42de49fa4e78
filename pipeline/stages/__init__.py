"""One module a stage, each with a `run` that reads and writes what Layout names."""

STAGES = ("prepare", "split", "train", "predict", "tune", "fuse", "score", "encode", "validate", "report")
"""In the order of the graph."""
