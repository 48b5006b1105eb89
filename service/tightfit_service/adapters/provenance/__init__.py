"""Signatures over results: the deployment's key, signed envelopes, and digests of exported files."""
