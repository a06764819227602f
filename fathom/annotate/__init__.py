"""Annotation: an engine's validated answers put on records that exist already.

`scale` puts a number on a problem, `rewrite` gives a chain another form, both by way of `asking`.
Chains of a model's own are `rollout`'s business.
"""
