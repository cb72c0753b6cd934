"""What every training process of the tests imports, imported once: processes are forked from one that has it (tests.training.forked)."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
from transformers import Qwen2Config, VideoLlama3ForConditionalGeneration  # noqa: F401

from training import evaluate, feed, launch, loop  # noqa: F401
