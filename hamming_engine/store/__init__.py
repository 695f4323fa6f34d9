"""Collections on disk: HDF5 segments written once, listed by manifests; knows nothing of search.

``FORMAT.md`` beside this file describes the files; ``files`` is the only module that changes any.
"""
