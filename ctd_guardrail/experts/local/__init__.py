"""An expert that runs in this process: a classifier, or a language model's own likelihoods."""
