"""Trial of attention across cells (experiment 90): a memory of reference cells on top of fitted models."""
