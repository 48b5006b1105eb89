"""Who may come in: roles from a file, tokens of an identity provider, certificates of the port."""
