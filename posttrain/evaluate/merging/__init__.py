"""What a merge is worth: which skills of its parents it kept, weights chosen on half of a suite, and barriers."""
