"""Evaluate models by held-out likelihood, and front-ends by their round trip."""
