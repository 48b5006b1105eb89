"""Emulators: predictions of latency, energy and memory without the device."""
