"""Networks and how they are trained: backbone, head, decoder, learners, checkpoints; it may use synthesis and below."""
