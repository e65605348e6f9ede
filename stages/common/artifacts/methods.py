"""The methods and the baselines, in the order in which every table has them."""

METHODS = ("full", "lora")  # full fine-tuning and LoRA
BASELINES = ("linear_probe", "tfidf", "majority")
