"""One file per forget recipe, discovered by folder."""
