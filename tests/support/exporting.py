"""The short run whose weights tests export."""

MODEL = "enc32d2h2p8"
SIZES = ("--model", MODEL, "--decoder_type", "dec16d1h2", "--input_size", 32, "--max_images", 32, "--batch_size", 16)
RUN = ("--demo", *SIZES, "--num_workers", 0, "--device", "cpu", "--cache", "off", "--epochs", 1)
