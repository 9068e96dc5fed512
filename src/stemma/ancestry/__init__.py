"""Ancestry: which model was made from which, for one suspect (`trace`) and for many models (`trees`)."""
