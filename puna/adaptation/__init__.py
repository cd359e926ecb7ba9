"""Adaptation: a few new numbers beside a frozen model, and how they are folded into it."""
