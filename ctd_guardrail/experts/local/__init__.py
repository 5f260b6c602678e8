"""An expert that runs in this process: a classifier, or the likelihoods of a language model. Internal."""
