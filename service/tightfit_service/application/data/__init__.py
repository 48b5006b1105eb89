"""Samples of other sizes, stand-ins for labels, and what calibration samples say."""
