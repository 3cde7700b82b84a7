"""What happens beside training and testing: history, progress bar, evaluation, gallery."""
