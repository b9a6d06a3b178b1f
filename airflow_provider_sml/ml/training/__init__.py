"""Training and evaluation of a model on a sample."""
