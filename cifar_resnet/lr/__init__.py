"""The learning-rate search: short sweeps, the rule that turns them into LRMIN and LRMAX, and its picture."""
