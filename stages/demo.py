"""Serve a page to try trained models: their probabilities, the words that support a label, and similar texts."""

import argparse
from pathlib import Path
from typing import Any

from stages.common.artifacts.methods import METHODS
from stages.common.runtime.exceptions import UserError, report_user_errors
from stages.common.runtime.paths import MODELS, TOKENIZED

NUM_NEAREST = 5  # Number of similar training texts on the page.


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.demo", description=__doc__)
    default = [MODELS / method for method in METHODS]
    parser.add_argument(
        "models",
        nargs="*",
        type=Path,
        default=default,
        metavar="DIR",
        help="folders of models (default: data/models/*)",
    )
    parser.add_argument(
        "--base-model", type=Path, metavar="DIR", help="base model of LoRA adapters (default: data/base_model)"
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="port of 127.0.0.1 (default: 8000); 0 uses any free port"
    )
    return parser.parse_args()


@report_user_errors
def main() -> None:
    arguments = parse_arguments()
    from stages.common.artifacts.arrow import get_class_names, read_table
    from stages.common.reporting.formatting import DISPLAY_NAMES
    from stages.common.serving.demo_server import DemoServer
    from stages.common.serving.explanation import NearestTexts, explain_prediction
    from stages.common.serving.text_classifier import load_text_classifier

    models = {}
    for folder in arguments.models:
        is_adapter = (folder / "adapter_config.json").is_file()
        is_alone = sum(other.name == folder.name for other in arguments.models) == 1
        # If two folders have the same name, their paths tell the models apart.
        name = DISPLAY_NAMES.get(folder.name, folder.name) if is_alone else str(folder)
        models[name] = load_text_classifier(folder, arguments.base_model if is_adapter else None)
    labels, *others = (classifier.labels for classifier in models.values())
    if any(other != labels for other in others):
        raise UserError("the models have different classes; choose models with the same classes")
    nearest = None
    if TOKENIZED.is_file():
        table = read_table(TOKENIZED)
        class_names = get_class_names(table.schema)
        nearest = NearestTexts(table["text"].to_pylist(), [class_names[label] for label in table["labels"].to_numpy()])

    def explain(text: str) -> dict[str, Any]:
        predictions = {name: explain_prediction(classifier, text) for name, classifier in models.items()}
        return {"labels": labels, "models": predictions, "nearest": nearest.find(text, NUM_NEAREST) if nearest else []}

    try:
        server = DemoServer(explain, arguments.port)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {arguments.port}: {error}; choose another with --port") from error
    with server:
        print(f"{server.url} (Ctrl-C ends it)", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
