"""The audit: arrays in, arrays out, never a model.

One file per attack, each with the literal constants `name`, `label`, `paper` and `version`:

    on the pairs of an audit    ulira, lira, rmia, update_leakage
    on the target and shadows   lira, rmia, attack_r
    on one model                loss_threshold, population_loss, population_svm, population_matched, attack_p,
                                entropy, correctness, quantile_regression, gaussian_poisoning
    on many models of one set   klom, neurips_score
    on scores of two worlds     epsilon_bounds

`worlds` turns a matrix of scores with masks into the worlds that the attacks on pairs compare, `held_out`
learns thresholds on other pairs, `exposed` tells which samples are; the other files are helpers. ulira takes
torch tensors too and computes on their device; the others take numpy arrays. `lethe run` uses all but
quantile_regression and gaussian_poisoning, which need features and gradients. docs/audit.md has examples.
Nothing is imported here, so that reading the package costs nothing: `from attacks import ulira, rmia,
metrics`, then `ulira.ulira(forgotten, never, retrained)`.
"""
