"""The reasoning embedder: backbone, generation, prompts, model folders."""
