"""Training: one optimizer loop for SFT, preferences and GRPO, the fused step, and the memory plan."""
