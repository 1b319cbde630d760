"""Local exponents, the exponential-to-power-law transition, fits with uncertainty.

`regimes` holds the one definition of the transition and its record, `exponents` the derivatives of sampled curves,
`fits` the models of a loss curve, `bootstrap` the resampling, `curves` the transition of a sampled curve.
"""
