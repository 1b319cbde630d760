"""Tables of finished runs: scaling laws fitted to them, checked, and turned into decisions."""
