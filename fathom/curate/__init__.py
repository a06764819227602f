"""Curation: which problems, chains and rows stay, which are the same one, and how they leave for training."""
