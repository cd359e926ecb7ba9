"""How good a model is: the likelihood of a text, and how far two models are apart."""
