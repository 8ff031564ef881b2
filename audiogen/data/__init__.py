"""From a folder of sound files to training batches: index, split, encoded cache, crops."""

from .cache import EncodedCache, is_cache
from .cache_index import CachedFile
from .conditions import FileConditions, Labels, choose_conditions, describe_labels, find_labels, read_labels
from .crops import Crops
from .index import FileEntry, Index, Rejected, long_enough, main_sample_rate, scan
from .labels import label_names, label_of
from .pipeline import Encoded, default_rate, encode_folder, fit_to, frontend_for
from .sequences import Sequences
from .split import Part, Split, split, training_wavs

__all__ = [
    "CachedFile",
    "Crops",
    "Encoded",
    "EncodedCache",
    "FileConditions",
    "FileEntry",
    "Index",
    "Labels",
    "Part",
    "Rejected",
    "Sequences",
    "Split",
    "choose_conditions",
    "default_rate",
    "describe_labels",
    "encode_folder",
    "find_labels",
    "fit_to",
    "frontend_for",
    "is_cache",
    "label_names",
    "label_of",
    "long_enough",
    "main_sample_rate",
    "read_labels",
    "scan",
    "split",
    "training_wavs",
]
