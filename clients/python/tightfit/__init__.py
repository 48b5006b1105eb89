"""Thin Python client and command line of tightfit."""
