"""What decides which patches of an image are hidden: noise, one number a patch; those of least noise stay visible.

Of a training image it belongs to (seed, epoch, image), of a validation image to the image alone, in every run and epoch.
The rule from noise to masks is model.patches.hidden_patches.
"""

import numpy as np

from .streams import VAL_MASK, generator


def training_noise(rng, patches):
    """float32 (L,) in [0, 1), drawn from the generator of an image's crop after box and flip."""
    return rng.random(patches, dtype=np.float32)


def validation_noise(index, patches):
    """float32 (L,) in [0, 1) of a validation image."""
    return generator(VAL_MASK, index).random(patches, dtype=np.float32)
