"""What an edit leaves behind: the network, its measured effect, weights, receipt, card, and a way to train on."""
