"""Stacked generative adversarial networks (Huang et al., CVPR 2017): the model, its training and its scores."""
