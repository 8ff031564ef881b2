"""From a folder of sound files to training batches: index, split, encoded cache, crops.

Scanning a folder, splitting it and reading its labels work without torch. What needs it is imported when it is used.
"""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names
from .cache_index import CachedFile, is_cache
from .index import FileEntry, Index, Rejected, corpus_names, files_of, long_enough, main_sample_rate, scan
from .labels import Labels, describe_labels, find_labels, find_labels_of_file, label_names, label_of, read_labels
from .split import Part, Split, split, split_each, training_wavs

if TYPE_CHECKING:
    from .cache import EncodedCache
    from .conditions import FileConditions, choose_conditions
    from .crops import Crops
    from .descriptors import compute_descriptor, described_value, is_descriptor, open_descriptors, stride_of
    from .joined import join_caches
    from .pipeline import Encoded, default_rate, encode_folder, fit_to, frontend_for
    from .sequences import Sequences
    from .stages import StageFrames, stage_config
    from .stereo import stereo_image
else:
    __getattr__ = lazy_names(
        globals(),
        {
            "Crops": "crops",
            "Encoded": "pipeline",
            "EncodedCache": "cache",
            "FileConditions": "conditions",
            "Sequences": "sequences",
            "StageFrames": "stages",
            "choose_conditions": "conditions",
            "compute_descriptor": "descriptors",
            "default_rate": "pipeline",
            "described_value": "descriptors",
            "encode_folder": "pipeline",
            "fit_to": "pipeline",
            "frontend_for": "pipeline",
            "is_descriptor": "descriptors",
            "join_caches": "joined",
            "open_descriptors": "descriptors",
            "stage_config": "stages",
            "stereo_image": "stereo",
            "stride_of": "descriptors",
        },
    )

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
    "StageFrames",
    "choose_conditions",
    "compute_descriptor",
    "corpus_names",
    "default_rate",
    "describe_labels",
    "described_value",
    "encode_folder",
    "files_of",
    "find_labels",
    "find_labels_of_file",
    "fit_to",
    "frontend_for",
    "is_cache",
    "is_descriptor",
    "join_caches",
    "label_names",
    "label_of",
    "long_enough",
    "main_sample_rate",
    "open_descriptors",
    "read_labels",
    "scan",
    "split",
    "split_each",
    "stage_config",
    "stereo_image",
    "stride_of",
    "training_wavs",
]
