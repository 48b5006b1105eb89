"""Evaluators: exported files run in their own runtime."""
