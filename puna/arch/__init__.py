"""What a model is, as data. Nothing here imports torch."""
