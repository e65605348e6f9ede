"""Train one run of LoRA, which adds low-rank adapters and a head to the frozen base model."""

from stages.common.runtime.disk import check_disk
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.launch import parse_run, start_processes
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import BASE_MODEL, TOKENIZED
from stages.common.runtime.threads import set_up_threads


@report_user_errors
def main() -> None:
    params, (fold, learning_rate) = load_params(), parse_run(__doc__)
    check_disk(params)
    start_processes(params.run.launcher, params.run.parallel, "stages.train_lora")
    set_up_threads()
    seed = params.train.seed + fold  # Folds have different seeds, so that they differ as new experiments would.
    # torch takes seconds to import, so errors in params.yaml are reported first.
    from stages.common.artifacts.arrow import read_class_names
    from stages.common.modeling.classifier import add_lora, build_classifier
    from stages.common.training.train_stage import train_stage

    base_model = build_classifier(BASE_MODEL, read_class_names(TOKENIZED), params.train.dropout, seed)
    train_stage(add_lora(base_model, params.lora, seed), "lora", params, fold, seed, learning_rate)


if __name__ == "__main__":
    main()
