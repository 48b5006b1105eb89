"""The generated messages and stubs of the contract; `protos/generate.py` writes them, never edit by hand."""
