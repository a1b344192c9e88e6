"""Rules that choose which ids of a distribution are kept, and the random numbers that they use."""
