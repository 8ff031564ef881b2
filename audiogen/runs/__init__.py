"""Run folders: their config, their files, and the Run that is loaded from them."""
