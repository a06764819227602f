"""Evaluation: what chains say of a model, as numbers with intervals, and which claims they bear out."""
