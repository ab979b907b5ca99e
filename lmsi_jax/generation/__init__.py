"""The model's own questions and its own few-shot prompts (LMSI, section 3.3). PURE."""
