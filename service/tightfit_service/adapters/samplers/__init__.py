"""Samplers of other libraries behind tightfit's own Protocol."""
