"""Theory against finite-size runs on one clock: ratios, z-scores, transitions, a verdict, a report."""
