"""The Llama family: shape (`config`), forward pass (`llama`), Hugging Face directories in and out (`huggingface`),
generation.
"""
