"""Which ids of a distribution are kept, and the random numbers that this takes."""
