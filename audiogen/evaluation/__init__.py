"""Evaluation: likelihood in bits beside counting, and how close a round trip comes."""
