"""Utilities that know nothing of audio or models: files, downloads, archives, compilation, devices."""
