"""The classes and the methods, in the order in which every table and array has them."""

LABELS = ("부정", "중립", "긍정")  # negative, neutral, positive: class index = polarity + 1
METHODS = ("full", "lora")  # full fine-tuning and LoRA
BASELINES = ("linear_probe", "tfidf", "majority")
