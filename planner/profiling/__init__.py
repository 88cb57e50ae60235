"""Microbenchmarks of this machine or, under a launcher, of a cluster; they write samples files."""
