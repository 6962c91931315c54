"""What a machine with an NVIDIA GPU shows about the GPU kernels, in one command: `make gpu`."""
