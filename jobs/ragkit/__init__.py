"""The parts of a retrieval pipeline over the running interpreter's documentation; the jobs beside it join them."""
