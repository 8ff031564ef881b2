"""The own codec's parts: networks, residual vector quantizer, losses."""
