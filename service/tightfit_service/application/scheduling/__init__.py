"""Which job runs here, and what is told of it while it does."""
