"""One op per file: the reference in torch, the kernel, its launcher. Installed as encodec_fast.kernels."""
