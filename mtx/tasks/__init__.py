"""What is learned: SeqIO Tasks and Mixtures, one source per file. TensorFlow lives here only."""
