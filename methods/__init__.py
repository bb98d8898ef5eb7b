"""The science: one file per unlearning method, and base.py with what they share. Discovered by folder."""
