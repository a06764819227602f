"""What verl makes of an export: run by the Python of the peers' environment, its last line is JSON. Not a test.

python peer_verl.py FOLDER MODEL: verl.parquet through RLHFDataset and verl's own reward, messages.parquet
through MultiTurnSFTDataset with the model's tokenizer.
"""

import json
import sys
from pathlib import Path

from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerFast
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.utils.reward_score import default_compute_score

ANSWERS = {"math": "So \\boxed{{{gold}}}.", "choice": "So \\boxed{{{gold}}}.", "code": "```python\n{gold}\n```"}
PROGRAM = "print(sum(int(x) for x in input().split()))"


def main(folder: Path, model: Path) -> dict:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    cache = {"cache_dir": str(folder / "cache")}
    rl = RLHFDataset(
        str(folder / "verl.parquet"),
        tokenizer,
        OmegaConf.create({**cache, "max_prompt_length": 2048, "filter_overlong_prompts_workers": None}),
    )
    rows = [rl[i] for i in range(len(rl))]
    batch = collate_fn(rows)
    sft = MultiTurnSFTDataset(
        str(folder / "messages.parquet"),
        tokenizer,
        OmegaConf.create({"max_length": 4096, "pad_mode": "no_padding", "ignore_input_ids_mismatch": True}),
    )
    trained = [sft[i] for i in range(len(sft))]
    return {
        "prompts": [row["raw_prompt"] for row in rows],
        "index": [int(i) for i in batch["index"]],
        "ids": [row["extra_info"]["id"] for row in rows],
        "right": [reward(row, right=True) for row in rows],
        "wrong": [reward(row, right=False) for row in rows],
        "trained": [tokenizer.decode(row["input_ids"][row["loss_mask"].bool()]) for row in trained],
    }


def reward(row: dict, right: bool) -> float:
    """verl's reward of an answer that says the ground truth, or something else."""
    truth = row["reward_model"]["ground_truth"]
    answer = PROGRAM if row["ability"] == "code" else truth
    text = ANSWERS[row["ability"]].format(gold=answer if right else "print(7)")
    return default_compute_score(row["data_source"], text, truth, row["extra_info"])


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
