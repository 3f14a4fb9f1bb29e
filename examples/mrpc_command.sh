#!/bin/sh
# MRPC by the command: read the splits of a folder, fine-tune, score, keep everything in runs/mrpc-command.
# "glue/mrpc" and "bert-base-uncased" are folders here; of the hub, the first would be hub:glue/mrpc.
set -eu
headstart train glue/mrpc --text sentence1 --pair sentence2 --label label --model bert-base-uncased \
    --epochs 3 --batch-size 32 --learning-rate 2e-4 --max-length 128 --seed "${SEED:-42}" \
    --set train.order=random --set train.best=last --run "${RUN_DIR:-runs/mrpc-command}" --yes
headstart show "${RUN_DIR:-runs/mrpc-command}"
