"""The one table of ops: what a recipe's `op:` may name, and where that lives. Nothing is imported until it is used."""

from __future__ import annotations

from fathom.config import Op

_TRANSFORMERS = ("torch", "transformers.models.qwen2.modeling_qwen2")
_ENGINE = (*_TRANSFORMERS, "fathom.engines.hf")
_TRAINING = (*_TRANSFORMERS, "fathom.train.sft")
_GENERATION_COST, _TRAINING_COST = "fathom.estimates_generation", "fathom.estimates_training"


def _op(
    target: str,
    config: str,
    version: int = 1,
    preload: tuple[str, ...] = (),
    estimates: str = "fathom.estimates",
    **more: bool,
) -> Op:
    module, _, function = target.partition(":")
    return Op(
        target=target,
        config=config if ":" in config else f"{module}:{config}",
        version=version,
        preload=preload,
        estimate=f"{estimates}:{function.removeprefix('run_')}",
        **more,
    )


OPS: dict[str, Op] = {
    "given": _op("fathom.recipe.given:run_given", "GivenConfig"),
    "sources": _op("fathom.sources.stage:run_sources", "SourcesConfig", version=2),
    "check_tests": _op("fathom.check_tests:run_check_tests", "CheckTestsConfig"),
    "dedup": _op("fathom.curate.ops.dedup:run_dedup", "DedupConfig", version=2),
    "decontaminate": _op("fathom.curate.ops.decontaminate:run_decontaminate", "DecontaminateConfig", version=2),
    "annotate": _op(
        "fathom.annotate.scale:run_annotate", "AnnotateConfig", preload=_ENGINE, estimates=_GENERATION_COST
    ),
    "rewrite": _op("fathom.annotate.rewrite:run_rewrite", "RewriteConfig", preload=_ENGINE, estimates=_GENERATION_COST),
    "grade": _op("fathom.rollout:run_grade", "GradeConfig"),
    "rollout": _op("fathom.rollout:run_rollout", "RolloutConfig", preload=_ENGINE, estimates=_GENERATION_COST),
    "solve_rate": _op("fathom.curate.ops.solve_rate:run_solve_rate", "SolveRateConfig"),
    "select": _op("fathom.curate.ops.select:run_select", "SelectConfig"),
    "pairs": _op("fathom.curate.ops.pairs:run_pairs", "PairsConfig", estimates=_TRAINING_COST),
    "mix": _op("fathom.curate.ops.mix:run_mix", "MixConfig"),
    "export": _op("fathom.curate.ops.export:run_export", "fathom.curate.export_config:ExportConfig"),
    "tokenize": _op(
        "fathom.curate.tokenize:run_tokenize", "fathom.curate.tokenize_config:TokenizeConfig", preload=_TRANSFORMERS
    ),
    "sft": _op(
        "fathom.train.sft:run_sft",
        "fathom.train.config:SftConfig",
        preload=_TRAINING,
        estimates=_TRAINING_COST,
        one_per_device=True,
    ),
    "grpo": _op(
        "fathom.train.grpo:run_grpo",
        "fathom.train.config:GrpoConfig",
        preload=(*_TRAINING, "fathom.train.grpo"),
        estimates=_TRAINING_COST,
    ),
    "prefer": _op(
        "fathom.train.prefer:run_prefer",
        "fathom.train.config:PreferConfig",
        preload=(*_TRAINING, "fathom.train.prefer"),
        estimates=_TRAINING_COST,
        one_per_device=True,
    ),
    "merge": _op(
        "fathom.merge:run_merge",
        "fathom.merge_config:MergeConfig",
        preload=_TRANSFORMERS,
        estimates=_TRAINING_COST,
    ),
    "gguf": _op("fathom.gguf.export:run_gguf", "fathom.gguf.config:GgufConfig", estimates=_TRAINING_COST),
    "evaluate": _op("fathom.evaluate.run:run_evaluate", "EvaluateConfig", preload=_ENGINE, estimates=_GENERATION_COST),
}
"""Op name -> where it lives. Raise `version` when the meaning of an op's output changes."""
