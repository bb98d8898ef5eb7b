"""The audit: arrays in, arrays out, never a model.

One file per attack, each with the literal constants `name`, `label`, `paper` and `version`:

    on the pairs of an audit    ulira, lira, rmia, update_leakage
    on the target and shadows   lira, rmia, attack_r
    on one model                loss_threshold, population_loss, attack_p, entropy, correctness,
                                quantile_regression

The other files (`scores`, `metrics`, `moments`, `moderation`, `bootstrap`, `inputs`) are helpers. Nothing
is imported here, so that reading the package costs nothing: `from attacks.ulira import ulira`.
"""
