"""Log-mel front-ends, continuous and quantized, decoded by Griffin-Lim or a vocoder."""
