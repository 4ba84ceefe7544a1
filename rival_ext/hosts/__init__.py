"""One file a host: the only places that import it."""
