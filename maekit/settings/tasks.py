"""What a run can be: pre-training, or an evaluation of an encoder. No torch."""

PRETRAIN, FINETUNE, LINPROBE, KNN = TASKS = ("pretrain", "finetune", "linprobe", "knn")
EVALUATIONS = (FINETUNE, LINPROBE, KNN)
DECODER = "decoder"  # a pre-training of a new decoder on a frozen encoder, --freeze encoder
