"""Peak bytes of a training rank, part by part, and whether they fit."""
