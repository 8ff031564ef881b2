"""Byte-pair encoding over the codes of another front-end."""
