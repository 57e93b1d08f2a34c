"""Section 4 and the limits: what is measured, against which rivals."""
