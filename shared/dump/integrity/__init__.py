"""What shows that the files of a dump are whole and belong together: receipts, footers, checksums, verification."""
