"""Trains with a recipe of the paper, like `vitkeras train`, from the root of the repository.

  python -m experiments.train --config=experiments/configs/paper_finetune.py:B/16,cifar10 \
      --config.init_from=runs/pretrain --workdir=runs/finetune
"""

from vitkeras.cli import runner, train

if __name__ == "__main__":
    runner.run_script(train, "python -m experiments.train")
