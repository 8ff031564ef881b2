"""Models: embeddings, patterns, backbones, heads, and the SequenceModel that joins them."""
