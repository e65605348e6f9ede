"""Fine-tune low-rank adapters and the head; the base model stays as it is."""

from stages.common.errors import one_line
from stages.common.model import add_lora, build_classifier
from stages.common.params import load_params
from stages.common.paths import BASE_MODEL, LORA, LORA_HISTORY
from stages.common.training import fit


@one_line
def main() -> None:
    params = load_params()
    model = add_lora(
        build_classifier(BASE_MODEL, params.train.dropout, params.train.seed), params.lora, params.train.seed
    )
    fit(model, params.train, params.lora.learning_rate, LORA, LORA_HISTORY)


if __name__ == "__main__":
    main()
