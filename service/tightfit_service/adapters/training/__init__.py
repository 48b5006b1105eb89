"""Gradients and training of working graphs in torch."""
