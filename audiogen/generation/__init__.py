"""Generation: a model and a request in, codes or frames and then sound out."""
