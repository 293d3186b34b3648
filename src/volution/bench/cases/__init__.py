"""What is measured: one file for each family, with operators and networks as users run them."""
