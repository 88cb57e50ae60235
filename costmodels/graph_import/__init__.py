"""Model graphs from what people have: dimensions, a Hugging Face config, a network of operators."""
