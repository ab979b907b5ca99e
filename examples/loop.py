"""One round of the loop in Python, on two hundred questions: `python examples/loop.py`."""

import lmsi_jax
from lmsi_jax.config import MinConfidence, Optimizer, Sampling, Training

model = lmsi_jax.load("embedded")  # or the folder of an imported model, or runs/x/round_1/train
task = lmsi_jax.task("purchases")
shots = task.exemplars()
questions = task.questions("train", "hard", count=200, seed=0)  # no answers in them
samples = lmsi_jax.sample(model, questions, shots, sampling=Sampling(num_samples=16))
votes = lmsi_jax.vote(questions, samples)
rows = lmsi_jax.select(questions, samples, votes, [MinConfidence(confidence=0.4)])
training = Training(steps=40, optimizer=Optimizer(learning_rate=5e-4))
examples = lmsi_jax.mix(rows, shots, prompts=model.prompts)
better = lmsi_jax.train(model, examples, "runs/example", training)
test = task.questions("test", "hard", count=100, seed=0)
for name, one in {"before": model, "after": better}.items():
    print(name, lmsi_jax.evaluate(one, test, shots).accuracy)
