"""Compression techniques, one file each: ONNX graph in, ONNX graph out."""
