"""What the neural codec and the vocoder are made of and trained by: networks, quantizer, losses, trainer."""
