"""The outside world: formats, training, runtimes, emulators, storage, execution."""
