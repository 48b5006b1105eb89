"""Where the service's measurements go."""
