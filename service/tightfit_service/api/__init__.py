"""gRPC only: servicers, interceptors, codec and resource names."""
