"""Experiments: the same training over several arms and seeds, paired and judged."""
