"""`audiogen doctor`: check the installation, a folder of sound files, and whether a model can learn from it."""
