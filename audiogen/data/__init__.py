"""From a folder of sound to batches: index, split, encoded cache, crops."""

from .cache import EncodedCache, is_cache
from .crops import Crops
from .index import FileEntry, Index, Rejected, long_enough, main_sample_rate, scan
from .record import CachedFile
from .sequences import Sequences
from .split import Part, Split, split, training_wavs

__all__ = ["CachedFile", "Crops", "EncodedCache", "FileEntry", "Index", "Part", "Rejected", "Sequences", "Split",
           "is_cache", "long_enough", "main_sample_rate", "scan", "split", "training_wavs"]
