"""X-volution: convolution and windowed self-attention, folded into one."""
