"""The folder `weights/` of a dump: tensors that are too large for the manifest, each file written once."""
