"""What runs a teacher: the contract, and one folder or file an engine."""
