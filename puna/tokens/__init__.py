"""Text to ids and back: learning a vocabulary, encoding, ids on disk, streaming. Nothing here imports torch."""
