"""Hardware targets: the catalogue and the classes that partial descriptions inherit from."""
