"""One operator; see its README."""
