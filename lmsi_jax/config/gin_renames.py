"""Map the gin names of earlier versions to the present ones, for the error of an unknown name."""

RENAMED: dict[str, str] = {
    "Run.generation": "Run.augmentation",
    "Run.watch": "Run.collapse_monitor",
    "Run.by_round": "Run.schedule",
    "Questions.overlap": "Questions.contamination",
    "Generation": "Augmentation",
    "Decoding.lanes": "Decoding.slots",
    "Decoding.resident": "Decoding.prompt_cache_factor",
    "Decoding.shrink": "Decoding.adaptive_batch",
    "Sampling.paths": "Sampling.num_samples",
    "Sampling.early_stop": "Sampling.adaptive_consistency",
    "Sampling.early_stop_every": "Sampling.adaptive_consistency_every",
    "Voting.ranker": "Voting.scorer",
    "Mixing.strong_count": "Mixing.human_examples",
    "Cap.paths": "Cap.num_samples",
    "Ranked": "ExternalScore",
    "Ranked.ranker": "ExternalScore.scorer",
    "Training.rows": "Training.sequences_per_prefix",
    "Training.length": "Training.sequence_length",
    "Training.prefix_length": "Training.max_prefix_length",
    "Training.rows_at_once": "Training.sequences_at_once",
    "Training.strong_rate": "Training.human_rate",
    "Optimizer.clip": "Optimizer.max_grad_norm",
    "Optimizer.matrix_rate": "Optimizer.muon_learning_rate",
    "Evaluation.promptings": "Evaluation.prompt_styles",
    "Evaluation.paths": "Evaluation.num_samples",
    "Watch": "CollapseMonitor",
    "Watch.sure": "CollapseMonitor.saturated",
    "Watch.same": "CollapseMonitor.no_diversity",
    "Watch.gap": "CollapseMonitor.calibration_gap",
    "Watch.pass_fall": "CollapseMonitor.pass_at_m_drop",
}
"""Old configurables and `Class.parameter` names -> the new ones."""


def renamed(name: str) -> str:
    """Returns "OLD was renamed to NEW" for an old configurable or parameter, else "".

    Args:
      name: "Class" or "Class.parameter", with the class's old or new name.
    """
    new = RENAMED.get(name) or _BY_NEW_CLASS.get(name)
    return f"{name} was renamed to {new}" if new else ""


_BY_NEW_CLASS = {
    f"{new.partition('.')[0]}.{old.partition('.')[2]}": new
    for old, new in RENAMED.items()
    if "." in old
}
"""Old parameters under the new name of their class -> the new names."""
