"""The preflight: what is proven before step 1, on rows and on rollouts, and the memory that the run will take."""
