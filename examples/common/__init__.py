"""What the experiments share, as plain functions: data, nets, metrics, plots, training and reports."""
