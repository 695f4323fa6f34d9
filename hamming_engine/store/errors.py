"""What can be wrong with a store; each message names the path."""


class StoreError(Exception):
    """A store cannot be used as asked."""


class FormatError(StoreError):
    """A path that is no collection, or one in a format that this version does not read."""


class DamagedError(StoreError):
    """Stored bytes are not those that were written."""


class LockedError(StoreError):
    """Another process or thread has the collection open for writing."""
