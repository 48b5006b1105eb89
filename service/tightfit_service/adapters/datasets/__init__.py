"""Readers of uploaded datasets."""
