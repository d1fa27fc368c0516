"""The model folder: the interface between stages, evaluation and the outside.

It is an ordinary Hugging Face folder (weights in safetensors, tokenizer with chat template) plus
`search_r3.json` with prompts, lengths and provenance, and the model card, README.md. Adapters are merged in
fp32 and then cast. A LoRA run keeps its adapter beside the merged weights, in `adapter/`.

It is read for inference (`loading`; a folder of others: `plain`), opened as the model that a stage trains
(`opening`), written (`saving`) and brought up to date (`upgrade`). The names below are what others, and model
cards, take from here.

Everything that is read has its SHA-256 in `search_r3.json` (`checksums`) and is compared with it
before it is used. No code of a folder is run: weights are safetensors, and what a configuration says of code
of its own (`auto_map`) is not heeded.

`search_r3.json` holds the three prompts as they were rendered for training, as text and as token ids, and the
pad token; whoever opens the folder takes them from there (format 2). Folders of format 1 have the wording
only and are rendered when they are opened; `python -m src.upgrade <folder>` writes down what that gives.
"""

from search_r3.models.checksums import ModelFolderError
from search_r3.models.folder.description import read_description
from search_r3.models.folder.loading import load_embedder
from search_r3.models.folder.opening import open_embedder
from search_r3.models.folder.saving import save_embedder
from search_r3.models.folder.upgrade import upgrade_folder

__all__ = [
    "ModelFolderError",
    "load_embedder",
    "open_embedder",
    "read_description",
    "save_embedder",
    "upgrade_folder",
]
