"""What a model directory or a loaded model holds: weights, tokenizer, chat template."""
