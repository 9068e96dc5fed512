"""What independent networks share: identities, tables of waves, initialisations from public seeds."""
