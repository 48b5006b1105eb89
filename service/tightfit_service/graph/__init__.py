"""The working representation: ONNX graphs, their analysis and safe surgery."""
