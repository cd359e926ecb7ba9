"""Documents: gathered from files, split, mixed. Nothing here imports torch."""
