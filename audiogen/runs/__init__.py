"""Run folders: their config, their files, and loading them as a Run."""
