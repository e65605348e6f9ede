"""Fine-tune low-rank adapters and the head; the base model stays as it is."""

from stages.common.errors import one_line
from stages.common.fitting import fit, run_seed
from stages.common.model import add_lora, build_classifier
from stages.common.params import load_params
from stages.common.paths import BASE_MODEL, RUNS


@one_line
def main() -> None:
    params, seed = load_params(), run_seed(__doc__)
    model = add_lora(build_classifier(BASE_MODEL, params.train.dropout, seed), params.lora, seed)
    fit(model, params.train, params.lora, seed, RUNS / "lora" / str(seed))


if __name__ == "__main__":
    main()
