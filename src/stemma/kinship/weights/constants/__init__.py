"""What many networks share without being kin: identities, tables of waves, starts from public seeds."""
