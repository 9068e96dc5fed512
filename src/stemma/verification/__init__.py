"""Verification of edits and of unlearning: from the models before and after, and control models, to evidence."""
