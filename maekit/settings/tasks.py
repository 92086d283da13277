"""What a run can be: pre-training, or an evaluation of an encoder. No torch."""

PRETRAIN, FINETUNE, LINPROBE, KNN = TASKS = ("pretrain", "finetune", "linprobe", "knn")
EVALUATIONS = (FINETUNE, LINPROBE, KNN)
