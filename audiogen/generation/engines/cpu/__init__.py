"""Engines for CPUs: the generate loop compiled by numba, the draw included."""
