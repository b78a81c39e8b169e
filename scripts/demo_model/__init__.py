"""The generated corpus, the tokenizer and the training of the demo model in ``models/tiny-mixtral``."""
