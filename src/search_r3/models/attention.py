"""Which kernels may compute attention on a GPU."""

import torch


def leave_out_cudnn() -> None:
    """Takes cuDNN's kernels from the choice of `scaled_dot_product_attention`, for the whole process.

    torch 2.11 and later prefer them on Hopper. They are wrong for what this project runs, masked rows of any
    length. Gradients are NaN at lengths of 64 modulo 128 (https://github.com/pytorch/pytorch/issues/196678),
    decoding fails ("Expected mha_graph.execute(...).is_good() to be true"), and every new length builds a
    graph first. torch's own fused kernels, flash and memory-efficient, have none of these faults. On a CPU
    nothing changes.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
