"""Mathematics on plain arrays: stage splits, placements, mixes, packings, caps and clocks."""
