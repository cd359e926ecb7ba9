"""Reports: figures from numbers, drawings of the model, and one self-contained HTML page."""
