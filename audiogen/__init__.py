"""audiogen: from a folder of WAVs to a generative model that you can listen to."""

__version__ = "0.1.0"
