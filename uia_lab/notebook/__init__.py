"""What runs in a kernel: the Lab, its magics and its widgets; ``uia_lab`` has the public names."""
