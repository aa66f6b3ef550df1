"""The split in time, pairing groups, weighted pairs, drawn negatives, and corrections for exposure."""
