"""Audio: read, write and resample sound files."""
