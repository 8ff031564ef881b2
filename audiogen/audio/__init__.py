"""Audio: read, write and resample sound files."""

from .io import AudioFile, audio_info, read_audio, read_blocks, resample, write_audio

__all__ = ["AudioFile", "audio_info", "read_audio", "read_blocks", "resample", "write_audio"]
