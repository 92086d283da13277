"""The columns of a run's files. No torch."""

from ..settings.tasks import EVALUATIONS

ACCURACIES = {"joint": "accuracy", "frozen": "frozen_accuracy", "knn": "knn_accuracy"}  # probe: column, percent
UNTRAINED = {  # what an accuracy is to be compared with: the encoder of the same seed before any training
    "accuracy": "untrained_frozen_accuracy",
    "frozen_accuracy": "untrained_frozen_accuracy",
    "knn_accuracy": "untrained_knn_accuracy",
}
ACCURACY_COLUMNS = (*ACCURACIES.values(), *dict.fromkeys(UNTRAINED.values()))
EVALUATION_ACCURACIES = tuple(  # top-1 in percent, of a pre-trained encoder and of the same network with random weights
    f"{of}{task}_accuracy" for task in EVALUATIONS for of in ("", "untrained_")
)
LOG_COLUMNS = (
    "epoch",
    "train_loss",
    "train_loss_rec",
    "train_loss_cls",
    "val_mse",
    *ACCURACY_COLUMNS,
    "lr",
    "epoch_time_s",
    "images_per_s",
    "peak_memory_mb",
    "norm_alpha_mean",
    "norm_alpha_min",
    "norm_alpha_max",
    "norm_alpha_saturated",
)
EVALUATION_COLUMNS = ("epoch", "train_loss", "val_loss", "acc1", "acc5", *LOG_COLUMNS[LOG_COLUMNS.index("lr") :])
SCORES = {**ACCURACIES, "top-1": "acc1", "top-5": "acc5"}  # for the terminal
MEASURED_LAST = ("val_mse", *ACCURACY_COLUMNS, "val_loss", "acc1", "acc5")  # of the last epoch, in summary.json
ALPHA_COLUMNS = ("epoch", "layer", "alpha", "saturated")
