"""Codes against codes: joins within a radius, clusters of duplicates, and all distances."""
