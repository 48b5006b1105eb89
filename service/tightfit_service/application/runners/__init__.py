"""Devices that measure: who is connected, and who measures what."""
