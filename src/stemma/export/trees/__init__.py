"""Family trees as pictures: where each model stands."""
