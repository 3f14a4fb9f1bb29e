"""The command: `headstart train reviews.csv` and its kin. It translates, and decides nothing."""
