"""Semantic tokens: what is said or played, without how it sounds."""
