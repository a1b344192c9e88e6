"""Storage of dumps: folders on this machine or at any URL that fsspec knows. Files are written atomically."""

from shared.storage.folder import Folder, Place, sha256_of

__all__ = ["Folder", "Place", "sha256_of"]
