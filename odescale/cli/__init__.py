"""The command line: `odescale systems | derive | solve | transition | train | compare | report | quickstart`."""
