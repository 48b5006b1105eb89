"""What networks and files cost on targets."""
