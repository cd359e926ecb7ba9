"""One file per formula: shown with a real model's numbers, by calling the product's own functions."""
