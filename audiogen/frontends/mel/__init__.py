"""Log-mel frames, their quantized form, and two ways back to sound: Griffin-Lim and a vocoder."""
