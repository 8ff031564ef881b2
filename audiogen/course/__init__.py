"""What only the lessons use: a scalar autograd engine, backward passes by hand, tokenizers, small models, pages."""
