"""The anchor of `sft_gpu.py`: TRL's own SFTTrainer with its fastest pieces.

On a GPU: Liger kernels for norms, RoPE and SwiGLU beside TRL's fused head, PyTorch's SDPA (cuDNN), gradient
checkpointing, torchao's 8-bit AdamW with stochastic rounding, bfloat16 weights. Rows of a step
run one by one, unpadded, which wastes no token; in the workload `packed` in TRL's own packs. On a CPU, for a
smoke test, without Liger and torchao (pip install liger-kernel torchao trl; the package itself needs none of them).

The first workload compiles torchao's update for every shape; later ones in the same process find it compiled.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from typing import Any

import torch
from datasets import Dataset
from sft_workload import BETAS, CAP, CLIP, LEARNING_RATE, ROOT, Clock, Workload, random_model
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from fathom.physics import ModelShape


class StepTimes(TrainerCallback):
    """Ticks a clock at the end of every optimizer step, and stops a run when its steps are done."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        self._clock.start()

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self._clock.tick()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **named: Any) -> None:
        if logs and "loss" in logs:
            self._clock.losses.append(float(logs["loss"]))


def settings(workload: Workload, device: str, directory: str) -> SFTConfig:
    """A step takes all its rows; packs are fewer than rows, and the last step of an epoch takes what there is."""
    gpu = device == "cuda"
    return SFTConfig(
        output_dir=directory,
        max_steps=len(workload.steps),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=len(workload.steps[0]),
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=CLIP,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_liger_kernel=gpu,
        bf16=True,
        use_cpu=not gpu,
        packing=workload.name == "packed",
        max_length=CAP,
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=gpu,
    )


def open_adamw(model: torch.nn.Module, device: str) -> torch.optim.Optimizer:
    if device == "cpu":
        return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0)
    from torchao.optim import AdamW8bit

    return AdamW8bit(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, bf16_stochastic_round=True)


def run(workload: Workload, shape: ModelShape, clock: Clock, seed: int) -> None:
    """Train on a workload with a fresh model; figures go to the clock."""
    warnings.simplefilter("ignore")
    rows = workload.rows(seed)
    model = random_model(shape, clock.device, seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT / "fathom/data/fathom-tiny-base")
    data = Dataset.from_dict({"input_ids": [row for step in rows for row in step]})
    with tempfile.TemporaryDirectory() as directory:
        trainer = SFTTrainer(
            model=model,
            args=settings(workload, clock.device, directory),
            train_dataset=data,
            processing_class=tokenizer,
            optimizers=(open_adamw(model, clock.device), None),
            callbacks=[StepTimes(clock)],
        )
        trainer.train()
    clock.save()
    trainer.accelerator.free_memory()
    del trainer, model
    gc.collect()
    if clock.device == "cuda":
        torch.cuda.empty_cache()
