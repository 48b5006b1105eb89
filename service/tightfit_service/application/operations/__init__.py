"""What keeps a deployment sound: its readiness, its diagnosis, and the collection of what is unused."""
