"""tightfit: compresses trained models to fit a budget on a device, as a gRPC service."""

__version__ = "0.1.0"
