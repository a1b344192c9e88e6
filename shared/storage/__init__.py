"""Where dumps are kept: folders on this machine or behind any URL that fsspec knows; files are whole or absent."""

from shared.storage.folder import Folder, Place, sha256_of

__all__ = ["Folder", "Place", "sha256_of"]
