"""The audit: arrays in, arrays out, never a model.

One file per attack (`ulira`, `population_loss`, `loss_threshold`), each with the literal constants `name`,
`label`, `paper` and `version`; the other files (`scores`, `metrics`, `moments`, `moderation`, `bootstrap`)
are helpers. Nothing is imported here, so that reading the package costs nothing: `from attacks.ulira import
ulira`.
"""
