"""The audit: arrays in, arrays out, never a model.

One file per attack, each with the literal constants `name`, `label`, `paper` and `version`:

    on the pairs of an audit    ulira, lira, rmia, update_leakage
    on the target and shadows   lira, rmia, attack_r
    on one model                loss_threshold, population_loss, population_svm, population_matched, attack_p,
                                entropy, correctness, quantile_regression, gaussian_poisoning
    on many models of one set   klom, neurips_score
    on scores of two worlds     epsilon_bounds

The other files (`arrays`, `scores`, `metrics`, `moments`, `moderation`, `bootstrap`, `inputs`, `exposed`) are
helpers. ulira takes torch tensors too and computes on their device; the others take numpy arrays.
`lethe run` uses ulira, population_loss, loss_threshold and exposed; the others are a library. Nothing is
imported here, so that reading the package costs nothing: `from attacks.ulira import ulira`.
"""
