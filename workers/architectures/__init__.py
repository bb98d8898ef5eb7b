"""One file per architecture, discovered by folder."""
