"""One file per dataset, discovered by folder."""
