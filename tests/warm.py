"""What a process does once, whatever its command: imported by the server that the tests' processes fork from.

Hydra's parser, transformers' table of renamed weights and matplotlib's fonts take half a second of every
process otherwise, and so does collecting garbage among all that was imported. Nothing here starts a thread,
which a fork would lose.
"""

import gc
from io import BytesIO

import matplotlib
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource

matplotlib.use("Agg")
from matplotlib import pyplot

get_checkpoint_conversion_mapping("qwen2")
with ConfigSource() as source:
    compose("train", ["stage=sft", "output_dir=a/b-c_1", "data.packages=[a,b]", "seed=2"], source)
figure, axes = pyplot.subplots(layout="constrained")
axes.plot([1, 2], [0.5, 1.0], label="a", marker="o")
axes.set_title("a")
axes.legend()
figure.savefig(BytesIO())
pyplot.close(figure)
gc.freeze()
