"""Targets: described, estimated on, measured on, calibrated."""
