"""The model: one forward pass, and the Linears that can stand in it."""
