"""Data sets: the embedded *scenes*, and real ones from a data root."""
