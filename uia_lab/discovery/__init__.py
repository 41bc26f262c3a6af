"""Finds backends that nobody registered."""
