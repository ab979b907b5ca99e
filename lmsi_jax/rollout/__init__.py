"""Many paths per question: path keys, sampling, shared-prefix attention, the jitted loop."""
