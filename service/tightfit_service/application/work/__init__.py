"""What happens to models and data inside a worker: a module for each kind of unit, and what they share."""
