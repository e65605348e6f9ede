"""Names of the methods and the baselines, in the order of all tables."""

METHODS = ("full", "lora")  # Full fine-tuning and LoRA.
BASELINES = ("linear_probe", "tfidf", "majority")
