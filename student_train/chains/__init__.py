"""Tags of a row as a chain: a linear-chain CRF, its transitions, and the chains of a batch."""
