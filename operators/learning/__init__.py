"""What the learner is made of, each part with its state taken out and put back as arrays.

``reservoir`` keeps a fair sample of what was seen (replay), ``ewc`` holds weights near where they were, where that
matters, ``drift`` says when what is seen has changed. None of them knows topics, checkpoints or Ray.
"""
