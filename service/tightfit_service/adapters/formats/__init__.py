"""Model formats: ONNX in, and the formats that devices run out."""
