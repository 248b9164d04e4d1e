"""From prompts to tokens: launches of a compiled decoder, and what watches them."""
