"""What LLaMA-Factory makes of an export: run by the Python of the peers' environment, its last line is JSON. Not a test.

python peer_llamafactory.py FOLDER MODEL NAME: sharegpt.json by its entry NAME of dataset_info.json, through
get_dataset with LLaMA-Factory's template `qwen3` and the model's tokenizer.
"""

import json
import sys
from pathlib import Path

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from transformers import PreTrainedTokenizerFast


def main(folder: Path, model: Path, name: str) -> dict:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    model_args, data_args, training_args, _, _ = get_train_args(
        {
            "model_name_or_path": str(model),
            "stage": "sft",
            "do_train": True,
            "dataset": name,
            "dataset_dir": str(folder),
            "template": "qwen3",
            "cutoff_len": 4096,
            "output_dir": str(folder / "out"),
            "overwrite_cache": True,
            "cache_dir": str(folder / "cache"),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
        }
    )
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    rows = get_dataset(template, model_args, data_args, training_args, stage="sft", tokenizer=tokenizer)[
        "train_dataset"
    ]
    return {
        "texts": [tokenizer.decode(row["input_ids"]) for row in rows],
        "trained": [tokenizer.decode([i for i in row["labels"] if i >= 0]) for row in rows],
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])))
