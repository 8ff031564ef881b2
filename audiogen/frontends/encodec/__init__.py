"""EnCodec at 24 kHz (Défossez et al. 2022), with Meta's published weights."""
