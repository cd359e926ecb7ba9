"""One training loop: it pretrains, tunes adapters and heals, depending only on which parameters train and on what data."""
